"""Subjects and messages of the relay, without NATS."""

import json
from decimal import Decimal
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rowsignal.changes import Change, Operation, Reset
from rowsignal.relay.messages import (
    UNREADABLE,
    Checkpoint,
    MessageWriter,
    decode,
    encode,
    schema_version,
)
from rowsignal.relay.subjects import all_subjects, stream_name, subject_of, token
from rowsignal.streams.loader import RowChange, TableReset

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
SCALARS = st.none() | st.booleans() | st.integers() | st.text() | st.decimals(allow_nan=False)
VALUES = st.recursive(
    SCALARS.filter(lambda it: not isinstance(it, Decimal) or it.is_finite()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
POSITION = "ARI0VngSNFZ4EjRWeBI0VngHAA"


@given(NAMES, NAMES)
def test_two_names_never_become_one_token(one: str, other: str) -> None:
    assert (token(one) == token(other)) == (one == other)


@given(NAMES)
def test_a_token_holds_nothing_that_means_something_in_a_subject(name: str) -> None:
    assert token(name)
    assert not set(token(name)) & set(".*> \t\r\n$")
    assert token(name).isascii()


@given(st.tuples(NAMES, NAMES, NAMES), st.tuples(NAMES, NAMES, NAMES))
def test_two_tables_never_have_one_subject(
    one: tuple[str, str, str], other: tuple[str, str, str]
) -> None:
    subjects = [subject_of(database, (schema, table)) for database, schema, table in (one, other)]
    assert (subjects[0] == subjects[1]) == (one == other)


@given(NAMES)
def test_a_stream_takes_all_subjects_of_its_database(database: str) -> None:
    whole, beneath = all_subjects(database)
    assert whole == subject_of(database)
    assert subject_of(database, ("s", "t")).startswith(beneath.removesuffix(">"))
    assert not set(stream_name(database)) & set(".*> /\\")


def _written(row: dict[str, Any], columns: tuple[str, ...] | None = None) -> Any:
    change = Change(operation=Operation.INSERT, schema="s", table="t", key={"id": 1})
    written = MessageWriter("d").change(RowChange(change, row), POSITION, columns or tuple(row))
    item = decode(written.payload, written.headers, "place")
    assert isinstance(item, RowChange)
    assert item.change.position == "place"
    return item.row


@given(st.dictionaries(st.text(), VALUES))
def test_values_arrive_as_they_were(row: dict[str, Any]) -> None:
    assert _same(_written(row), row)


def test_the_trace_of_the_writer_travels_as_a_header() -> None:
    for trace in (None, "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"):
        change = Change(operation=Operation.DELETE, schema="s", table="t", trace=trace)
        written = MessageWriter("d").change(RowChange(change), POSITION, ())
        item = decode(written.payload, written.headers, "place")
        assert isinstance(item, RowChange)
        assert item.change.trace == trace
        assert trace is None or trace.encode() not in written.payload


def _same(one: Any, other: Any) -> bool:
    """Compare, with numbers that have a point as exact numbers."""
    if isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in other)
    if isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(other, Decimal):
        return Decimal(one) == other
    return bool(one == other) and type(one) is type(other)


def test_a_text_cannot_pass_for_a_number() -> None:
    tricks = ["\0#1", "1", "Decimal('1')", '"1"', "a:1.5"]
    assert _written({"v": tricks}) == {"v": tricks}


def test_other_columns_stay_behind() -> None:
    assert _written({"id": 1, "salary": 5}, ("id",)) == {"id": 1}
    assert schema_version(("id",)) != schema_version(("id", "salary"))


def test_resets_and_checkpoints_come_back() -> None:
    writer = MessageWriter("d")
    reset = writer.reset(Reset(reason="Gone."), POSITION, 7)
    assert decode(reset.payload, reset.headers, "p") == Reset(reason="Gone.", position="p")
    of_table = TableReset(reason="Gone.", table=("s", "t"), is_of_capture=True)
    message = writer.reset(of_table, POSITION, 7)
    assert message.subject == "rowsignal.d.s.t"
    found = decode(message.payload, message.headers, "p")
    assert found == TableReset(reason="Gone.", position="p", table=("s", "t"), is_of_capture=True)
    checkpoint = writer.checkpoint(POSITION, 7)
    assert decode(checkpoint.payload, checkpoint.headers, "p") == Checkpoint()
    assert len({reset.id, checkpoint.id, writer.checkpoint(POSITION, 8).id}) == 3


def test_what_cannot_be_read_is_a_reset() -> None:
    for payload in (b"", b"[]", b"\xff", b"{}", b'{"operation":"grow"}', encode({"operation": 1})):
        assert decode(payload, {}, "p") == Reset(reason=UNREADABLE, position="p")
    deep = "[" * 500 + "]" * 500
    body = json.dumps({"operation": "insert", "row": "x"}).replace('"x"', deep)
    assert decode(body.encode(), {}, "p") == Reset(reason=UNREADABLE, position="p")
