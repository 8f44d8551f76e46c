"""Decoder of pgoutput's messages (PostgreSQL manual, "Logical Replication Message Formats").

Protocol version 1, in which the server sends a transaction once it has committed. Until then it
keeps a large one on its own disk, so that neither side holds one in memory. Version 2 sends
transactions while they run: a reader would have to hold back what may yet be rolled back.
"""

import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

BYTE = struct.Struct("!B")
SHORT = struct.Struct("!H")
LONG = struct.Struct("!I")
BEGIN = struct.Struct("!QqI")
COMMIT = struct.Struct("!BQQq")
TRUNCATE = struct.Struct("!IB")
LOGICAL = struct.Struct("!BQ")
COLUMN = struct.Struct("!Ii")
POSITION = struct.Struct("!Q")
TEXT, NULL, TOASTED = b"tnu"


class MalformedMessageError(ValueError):
    """A message is not as pgoutput writes them."""


class Unchanged:
    """The type of `UNCHANGED`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "UNCHANGED"


# A large value that was stored apart from its row and not touched: it is not in the WAL.
UNCHANGED: Final = Unchanged()

Value = str | Unchanged | None
Values = list[Value]


class Begin(NamedTuple):
    """A transaction: where its commit record lies, when it committed, and its 32-bit id."""

    commit_lsn: int
    committed_at: int
    xid: int


class Commit(NamedTuple):
    """The end of a transaction: where its commit record lies, and where that ends."""

    commit_lsn: int
    end_lsn: int
    committed_at: int


class Origin(NamedTuple):
    """The server that a transaction was replicated from."""

    lsn: int
    name: str


class Column(NamedTuple):
    """A column that is published; `is_key` where it is of the replica identity."""

    name: str
    type: int
    modifier: int
    is_key: bool


class Relation(NamedTuple):
    """A table as it was when the changes after this message were made.

    `identity` is that of pg_class.relreplident.
    """

    oid: int
    schema: str
    name: str
    identity: str
    columns: tuple[Column, ...]


class Type(NamedTuple):
    """A type that is not built in."""

    oid: int
    schema: str
    name: str


class Insert(NamedTuple):
    """A row that was inserted."""

    relation: int
    new: Values


class Update(NamedTuple):
    """A row that was updated; `old` is its key where that has changed, or the whole old row."""

    relation: int
    old: Values | None
    is_full: bool
    new: Values


class Delete(NamedTuple):
    """A row that was deleted: its key, or the whole row."""

    relation: int
    old: Values
    is_full: bool


class Truncate(NamedTuple):
    """Tables that were truncated by one statement."""

    relations: tuple[int, ...]
    options: int


class LogicalMessage(NamedTuple):
    """A message of `pg_logical_emit_message`."""

    is_transactional: bool
    lsn: int
    prefix: str
    content: bytes


Message = (
    Begin | Commit | Origin | Relation | Type | Insert | Update | Delete | Truncate | LogicalMessage
)


def decode(data: bytes) -> Message:
    """Return what a message says; raise `MalformedMessageError` for one that is not of pgoutput."""
    if not data:
        raise MalformedMessageError("A message of pgoutput is empty.")
    try:
        message, end = _READERS[data[0]](data)
    except KeyError:
        raise MalformedMessageError(f"No message of pgoutput begins with {data[:1]!r}.") from None
    except (IndexError, ValueError, struct.error) as error:
        kind = data[:1].decode("ascii", "replace")
        raise MalformedMessageError(
            f"A message {kind!r} of pgoutput is malformed: {error}."
        ) from None
    if end != len(data):
        raise MalformedMessageError(
            f"A message {chr(data[0])!r} of pgoutput has {len(data) - end} bytes too many."
        )
    return message


def _begin(data: bytes) -> tuple[Message, int]:
    return Begin(*BEGIN.unpack_from(data, 1)), 1 + BEGIN.size


def _commit(data: bytes) -> tuple[Message, int]:
    _, *rest = COMMIT.unpack_from(data, 1)
    return Commit(*rest), 1 + COMMIT.size


def _origin(data: bytes) -> tuple[Message, int]:
    (lsn,) = POSITION.unpack_from(data, 1)
    name, at = _string(data, 1 + POSITION.size)
    return Origin(lsn, name), at


def _relation(data: bytes) -> tuple[Message, int]:
    (oid,) = LONG.unpack_from(data, 1)
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    identity = chr(data[at])
    (count,) = SHORT.unpack_from(data, at + 1)
    at += 3
    columns = []
    for _ in range(count):
        column, at = _column(data, at)
        columns.append(column)
    return Relation(oid, schema or "pg_catalog", name, identity, tuple(columns)), at


def _column(data: bytes, at: int) -> tuple[Column, int]:
    is_key = bool(data[at] & 1)
    name, at = _string(data, at + 1)
    type_, modifier = COLUMN.unpack_from(data, at)
    return Column(name, type_, modifier, is_key), at + COLUMN.size


def _type(data: bytes) -> tuple[Message, int]:
    (oid,) = LONG.unpack_from(data, 1)
    schema, at = _string(data, 5)
    name, at = _string(data, at)
    return Type(oid, schema or "pg_catalog", name), at


def _insert(data: bytes) -> tuple[Message, int]:
    (oid,) = LONG.unpack_from(data, 1)
    new, at = _tuple(data, 5, "N")
    return Insert(oid, new), at


def _update(data: bytes) -> tuple[Message, int]:
    (oid,) = LONG.unpack_from(data, 1)
    kind, at = chr(data[5]), 5
    old = None
    if kind != "N":
        old, at = _tuple(data, at, "KO")
    new, at = _tuple(data, at, "N")
    return Update(oid, old, kind == "O", new), at


def _delete(data: bytes) -> tuple[Message, int]:
    (oid,) = LONG.unpack_from(data, 1)
    old, at = _tuple(data, 5, "KO")
    return Delete(oid, old, data[5] == ord("O")), at


def _truncate(data: bytes) -> tuple[Message, int]:
    count, options = TRUNCATE.unpack_from(data, 1)
    at = 1 + TRUNCATE.size
    oids = struct.unpack_from(f"!{count}I", data, at)
    return Truncate(oids, options), at + 4 * count


def _logical(data: bytes) -> tuple[Message, int]:
    flags, lsn = LOGICAL.unpack_from(data, 1)
    prefix, at = _string(data, 1 + LOGICAL.size)
    content, at = _counted(data, at)
    return LogicalMessage(bool(flags & 1), lsn, prefix, content), at


def _tuple(data: bytes, at: int, kinds: str) -> tuple[Values, int]:
    if chr(data[at]) not in kinds:
        raise ValueError(f"a row cannot be of kind {chr(data[at])!r} here")
    (count,) = SHORT.unpack_from(data, at + 1)
    at += 3
    values: Values = []
    for _ in range(count):
        kind = data[at]
        if kind == TEXT:  # read here, since a call for each value would take as long as the rest
            start = at + 1 + LONG.size
            at = start + LONG.unpack_from(data, at + 1)[0]
            values.append(str(data[start:at], "utf-8", "surrogateescape"))
        else:
            values.append(_other_value(kind))
            at += 1
    if at > len(data):
        raise ValueError("it ends within a value")
    return values, at


def _other_value(kind: int) -> Unchanged | None:
    if kind == NULL:
        return None
    if kind == TOASTED:
        return UNCHANGED
    raise ValueError(f"a value cannot be of kind {chr(kind)!r}")


def _counted(data: bytes, at: int) -> tuple[bytes, int]:
    (size,) = LONG.unpack_from(data, at)
    at += LONG.size
    if at + size > len(data):
        raise ValueError("it ends within a value")
    return data[at : at + size], at + size


def _string(data: bytes, at: int) -> tuple[str, int]:
    end = data.index(0, at)
    return data[at:end].decode("utf-8", "surrogateescape"), end + 1


_READERS: Mapping[int, Callable[[bytes], tuple[Message, int]]] = MappingProxyType(
    {
        ord("B"): _begin,
        ord("C"): _commit,
        ord("O"): _origin,
        ord("R"): _relation,
        ord("Y"): _type,
        ord("I"): _insert,
        ord("U"): _update,
        ord("D"): _delete,
        ord("T"): _truncate,
        ord("M"): _logical,
    }
)
