"""Arrays, ranges and intervals are read as PostgreSQL writes them, and refused else."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.mapping.literals import (
    parse_array,
    parse_interval,
    parse_multirange,
    parse_range,
)

TEXTS = st.none() | st.text()


def written(items: list[Any]) -> str:
    """Write an array with every text quoted, as PostgreSQL may."""
    parts = []
    for item in items:
        if isinstance(item, list):
            parts.append(written(item))
        elif item is None:
            parts.append("NULL")
        else:
            escaped = item.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'"{escaped}"')
    return "{" + ",".join(parts) + "}"


@given(st.lists(TEXTS) | st.lists(st.lists(TEXTS, min_size=2, max_size=2)))
def test_an_array_of_texts_is_read_as_it_was_written(items: list[Any]) -> None:
    assert parse_array(written(items), str) == items


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("{}", []),
        ("{1,NULL,-3}", [1, None, -3]),
        ("[0:1][2:3]={{1,2},{3,4}}", [[1, 2], [3, 4]]),
        ('{"1"}', [1]),
    ],
)
def test_an_array_may_have_bounds_nulls_and_dimensions(text: str, items: list[Any]) -> None:
    assert parse_array(text, int) == items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("empty", (None, None, False, False, True)),
        ("[1,5)", (1, 5, True, False, False)),
        ("(,5]", (None, 5, False, True, False)),
        ("(,)", (None, None, False, False, False)),
    ],
)
def test_a_range_has_its_bounds(text: str, expected: tuple[Any, ...]) -> None:
    found = parse_range(text, int)
    bounds = (found.lower, found.upper, found.lower_inc, found.upper_inc, found.isempty)
    assert bounds == expected


def test_bounds_of_text_are_unquoted() -> None:
    found = parse_range(r'["a,\"b""\\","")', str)
    assert (found.lower, found.upper) == ('a,"b"\\', "")


def test_a_multirange_has_its_ranges() -> None:
    assert parse_multirange("{}", int) == []
    first, second = parse_multirange("{(,2),[5,7]}", int)
    assert (first.upper, second.lower, second.upper_inc) == (2, 5, True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("00:00:00", timedelta(0)),
        ("-1 days -02:03:04.5", timedelta(days=-1, hours=-2, minutes=-3, seconds=-4.5)),
        ("1 mon", timedelta(days=30)),
        ("-1 years +3 days", timedelta(days=-362)),
        ("1 day 100:00:00", timedelta(days=1, hours=100)),
    ],
)
def test_an_interval_has_its_length(text: str, expected: timedelta) -> None:
    assert parse_interval(text) == expected


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        (lambda text: parse_array(text, str), "1,2"),
        (lambda text: parse_array(text, str), "{1,2"),
        (lambda text: parse_range(text, int), "1,2"),
        (lambda text: parse_range(text, int), "[a,2)"),
        (parse_interval, "infinity"),
    ],
)
def test_other_texts_are_refused(parse: Callable[[str], Any], text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)
