"""Identifiers and constants as PostgreSQL reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.identifiers import MAX_BYTES, literal, qualify, quote, shorten

names = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(names)
def test_a_quoted_name_has_no_way_out(name: str) -> None:
    if len(name.encode()) > MAX_BYTES:
        with pytest.raises(ValueError, match="63 bytes"):
            quote(name)
    else:
        inside = quote(name)[1:-1]
        assert inside.replace('""', "").count('"') == 0
        assert inside.replace('""', '"') == name


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL identifier"):
        quote(name)


@given(names)
def test_a_shortened_name_fits_and_differs_from_others(name: str) -> None:
    assert len(shorten(name).encode()) <= MAX_BYTES
    assert shorten(shorten(name)) == shorten(name)
    assert shorten("x" * 100) != shorten("x" * 101)


def test_names_are_qualified_and_constants_closed() -> None:
    assert qualify("order", "Sales") == '"Sales"."order"'
    assert qualify("order") == '"order"'
    assert literal("it's") == "'it''s'"
    assert literal("a\\'b") == "E'a\\\\''b'"
    with pytest.raises(ValueError, match="NUL"):
        literal("\0")
