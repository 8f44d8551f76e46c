"""What handlers compute: partitions, dead letters as JSON, typed rows, places, pauses."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.change_log.positions import Position, Snapshot
from rowsignal.changes import Change, Operation
from rowsignal.handlers import Retry
from rowsignal.handlers.consumer import partition_of
from rowsignal.handlers.letters import change_from_json, change_to_json, write
from rowsignal.handlers.places import place_of, position_of

NUMBERS = st.integers() | st.decimals(allow_nan=False, allow_infinity=False)
SCALARS = st.none() | st.booleans() | NUMBERS | st.text()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
KEYS = st.dictionaries(st.text(min_size=1), st.integers() | st.text() | st.booleans(), min_size=1)


def change(key: dict[str, Any] | None, **fields: Any) -> Change:
    return Change(operation=Operation.UPDATE, schema="public", table="t", key=key, **fields)


@given(KEYS, st.integers(1, 50), st.integers(1, 8))
def test_a_multiple_of_partitions_splits_each_of_them(
    key: dict[str, Any], partitions: int, times: int
) -> None:
    few, many = (partition_of(change(key), n) for n in (partitions, partitions * times))
    assert 0 <= few < partitions
    assert many % partitions == few
    backwards = dict(reversed(key.items()))
    assert partition_of(change(backwards), partitions) == few, "the order of columns is nothing"


def test_partitions_are_those_of_the_first_release() -> None:
    """Stored positions depend on where a row belongs."""
    keys: list[dict[str, Any] | None] = [{"id": 42}, {"id": "a"}, {"b": 2, "a": "\u00e4"}, None]
    assert [partition_of(change(key), 1000) for key in keys] == [114, 115, 425, 0]


@given(VALUES)
def test_json_is_written_without_losing_a_digit(value: Any) -> None:
    decoded = json.loads(write(value), parse_float=Decimal)
    assert _numbers(decoded) == _numbers(value)


def _numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _numbers(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if isinstance(value, Decimal | int) and not isinstance(value, bool):
        return Decimal(value)
    return value


@given(KEYS, st.lists(st.text()) | st.none(), st.none() | st.dictionaries(st.text(), VALUES))
def test_a_change_comes_back_from_its_letter(
    key: dict[str, Any], columns: list[str] | None, row: dict[str, Any] | None
) -> None:
    one = change(
        key,
        changed=None if columns is None else tuple(columns),
        row=None if row is None else _numbers(row),
        transaction_id=2**62,
        captured_at=datetime(2026, 11, 30, 1, 2, 3, 4, UTC),
        position="x.1",
    )
    again = change_from_json(change_to_json(one))
    assert (again.key, again.changed, again.position) == (one.key, one.changed, one.position)
    assert (again.transaction_id, again.captured_at) == (one.transaction_id, one.captured_at)
    assert _numbers(again.row) == one.row


@st.composite
def positions(draw: st.DrawFn) -> Position:
    running = draw(st.lists(st.integers(3, 1000), max_size=10, unique=True))
    seen = Snapshot(1001, tuple(sorted(running)))
    if draw(st.booleans()):
        return Position(UUID(int=7), seen)
    upto = Snapshot(1001 + draw(st.integers(0, 50)), tuple(sorted(running[:3])))
    return Position(UUID(int=7), seen, upto, draw(st.integers(0, 2**60)))


@given(positions())
async def test_a_place_is_the_position_without_the_name_of_the_log(position: Position) -> None:
    place = await place_of(None, position.encode())
    assert await position_of(None, place, UUID(int=7)) == position.encode()
    other = await position_of(None, place, UUID(int=8))
    assert other != position.encode()
    assert await place_of(None, other) == place


@given(st.integers(1, 10_000))
def test_pauses_double_up_to_a_bound(failures: int) -> None:
    retry = Retry(delay=0.5, max_delay=60.0)
    pause = retry.pause(failures)
    longest = min(0.5 * 2 ** min(failures - 1, 20), 60.0)
    assert longest / 2 <= pause <= longest


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"delay": -1.0}, {"timeout": 0.0}])
def test_a_retry_that_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="attempts is at least 1"):
        Retry(**wrong)
