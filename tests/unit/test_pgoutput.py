"""The decoder of pgoutput's messages, against an encoder written from PostgreSQL's manual."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.relay.wal.pgoutput import (
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    LogicalMessage,
    MalformedMessageError,
    Message,
    Origin,
    Relation,
    Truncate,
    Type,
    Update,
    decode,
)

LSN = st.integers(0, 2**64 - 1)
CLOCK = st.integers(-(2**63), 2**63 - 1)
OID = st.integers(0, 2**32 - 1)
NAME = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
SCHEMA = NAME.filter(bool)
VALUE = st.none() | st.just(UNCHANGED) | st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.lists(VALUE, max_size=6)
COLUMN = st.builds(Column, NAME, OID, st.integers(-(2**31), 2**31 - 1), st.booleans())

MESSAGES = st.one_of(
    st.builds(Begin, LSN, CLOCK, OID),
    st.builds(Commit, LSN, LSN, CLOCK),
    st.builds(Origin, LSN, NAME),
    st.builds(
        Relation,
        OID,
        SCHEMA,
        NAME,
        st.sampled_from("dnfi"),
        st.lists(COLUMN, max_size=4).map(tuple),
    ),
    st.builds(Type, OID, SCHEMA, NAME),
    st.builds(Insert, OID, VALUES),
    st.builds(Update, OID, st.none(), st.just(False), VALUES),
    st.builds(Update, OID, VALUES, st.booleans(), VALUES),
    st.builds(Delete, OID, VALUES, st.booleans()),
    st.builds(Truncate, st.lists(OID, max_size=5).map(tuple), st.integers(0, 3)),
    st.builds(LogicalMessage, st.booleans(), LSN, NAME, st.binary()),
)


def _text(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape") + b"\0"


def _row(values: list[Any]) -> bytes:
    parts = [struct.pack("!H", len(values))]
    for value in values:
        if value is None:
            parts.append(b"n")
        elif value is UNCHANGED:
            parts.append(b"u")
        else:
            data = value.encode("utf-8", "surrogateescape")
            parts.append(b"t" + struct.pack("!I", len(data)) + data)
    return b"".join(parts)


def _old(values: list[Any], *, is_full: bool) -> bytes:
    return (b"O" if is_full else b"K") + _row(values)


def encoded(message: Message) -> bytes:  # noqa: C901 -- one case for each message
    """Write a message as the server does."""
    match message:
        case Begin(lsn, clock, xid):
            return b"B" + struct.pack("!QqI", lsn, clock, xid)
        case Commit(lsn, end, clock):
            return b"C\0" + struct.pack("!QQq", lsn, end, clock)
        case Origin(lsn, name):
            return b"O" + struct.pack("!Q", lsn) + _text(name)
        case Relation(oid, schema, name, identity, columns):
            head = struct.pack("!I", oid) + _text(schema) + _text(name) + identity.encode()
            body = b"".join(
                bytes([it.is_key]) + _text(it.name) + struct.pack("!Ii", it.type, it.modifier)
                for it in columns
            )
            return b"R" + head + struct.pack("!H", len(columns)) + body
        case Type(oid, schema, name):
            return b"Y" + struct.pack("!I", oid) + _text(schema) + _text(name)
        case Insert(oid, new):
            return b"I" + struct.pack("!I", oid) + b"N" + _row(new)
        case Update(oid, old, is_full, new):
            before = b"" if old is None else _old(old, is_full=is_full)
            return b"U" + struct.pack("!I", oid) + before + b"N" + _row(new)
        case Delete(oid, old, is_full):
            return b"D" + struct.pack("!I", oid) + _old(old, is_full=is_full)
        case Truncate(oids, options):
            return b"T" + struct.pack(f"!IB{len(oids)}I", len(oids), options, *oids)
        case LogicalMessage(is_transactional, lsn, prefix, content):
            head = struct.pack("!BQ", is_transactional, lsn) + _text(prefix)
            return b"M" + head + struct.pack("!I", len(content)) + content
    raise AssertionError(message)


@given(MESSAGES)
def test_what_was_written_is_read(message: Message) -> None:
    assert decode(encoded(message)) == message


@given(MESSAGES, st.data())
def test_a_message_that_was_cut_is_malformed(message: Message, data: st.DataObject) -> None:
    whole = encoded(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(MalformedMessageError):
        decode(whole[:cut])


@given(MESSAGES, st.binary(min_size=1))
def test_a_message_with_more_behind_it_is_malformed(message: Message, more: bytes) -> None:
    with pytest.raises(MalformedMessageError):
        decode(encoded(message) + more)


@given(st.binary())
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    try:
        message = decode(data)
    except MalformedMessageError:
        return
    assert decode(encoded(message)) == message


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"Z123", "No message of pgoutput begins with b'Z'"),
        (b"I\0\0\0\1X\0\0", "a row cannot be of kind 'X' here"),
        (b"I\0\0\0\1N\0\1b\0\0\0\1x", "a value cannot be of kind 'b'"),
        (b"I\0\0\0\1N\0\1t\0\0\0\5abc", "it ends within a value"),
    ],
)
def test_malformed_messages_are_told_apart(data: bytes, reason: str) -> None:
    with pytest.raises(MalformedMessageError, match=reason):
        decode(data)


def test_the_schema_of_built_in_tables_is_named() -> None:
    relation = decode(b"R\0\0\0\1" + b"\0" + b"pg_class\0" + b"d" + b"\0\0")
    assert isinstance(relation, Relation)
    assert relation.schema == "pg_catalog"
