"""The catalogue's facts about the tables that are read from the WAL, and about the slot."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_rows import TableShape, table_shapes
from rowsignal.postgres.parameters import run_query
from rowsignal.postgres.statements import query
from rowsignal.relay.wal.texts import TextReaders, TypeFacts

PUBLICATION = "rowsignal"
LOST = "lost"
PLAIN = re.compile(r"[a-z0-9_]+", re.ASCII)
OTHER = re.compile(r"[^a-z0-9_]", re.ASCII)

NO_TABLE = "There is no table {} in this database."
NO_KEY = "{} has no primary key, by which readers know its rows: add one."
NO_IDENTITY = (
    "The WAL does not say which row of {} was updated or deleted: ALTER TABLE {} REPLICA IDENTITY"
    " FULL, or DEFAULT where the primary key is not deferrable."
)
NOT_LOGGED = (
    "{} is unlogged or temporary, so its changes are not in the WAL: ALTER TABLE SET LOGGED."
)
NOT_PUBLISHED = "Changes of {} are not published: `rowsignal relay install {}`."
OTHER_TABLE = "{} is another table now."
OTHER_PARTS = "{} has other partitions or children now."
OTHER_KEY = "The primary key of {} was changed."
TOLD_AGAIN = "Changes of {} are told again; some may be missing up to here."
SECURITY = "Row-level security of {} was switched."


@dataclass(frozen=True, slots=True)
class Member:
    """A relation that holds rows of a table: the table itself, a partition or a child."""

    oid: int
    name: str
    is_logged: bool
    is_full: bool
    is_published: bool
    has_identity: bool


@dataclass(frozen=True, slots=True)
class WalTable:
    """A table whose changes are read from the WAL; `shape` has the columns that are published."""

    name: QualifiedName
    oid: int | None = None
    is_partitioned: bool = False
    members: tuple[Member, ...] = ()
    shape: TableShape | None = None

    @property
    def label(self) -> str:
        """The table's name for messages."""
        return ".".join(self.name)

    @property
    def is_full(self) -> bool:
        """Tell whether the WAL has old values of all its rows."""
        return all(member.is_full for member in self.members)

    @property
    def is_published(self) -> bool:
        """Tell whether all its changes are published; those of a table without parts are, too."""
        return all(member.is_published for member in self.members)

    @property
    def obstacle(self) -> str | None:
        """Return a sentence on why the table cannot be published; None if it can."""
        if self.oid is None or self.shape is None:
            return NO_TABLE.format(self.label)
        if not self.shape.key:
            return NO_KEY.format(self.label)
        for member in self.members:
            if not member.is_logged:
                return NOT_LOGGED.format(member.name)
            if not member.has_identity:
                return NO_IDENTITY.format(member.name, member.name)
        return None

    @property
    def fault(self) -> str | None:
        """Return a sentence on why changes of the table are lost; None if they are not."""
        if self.obstacle is None and not self.is_published:
            return NOT_PUBLISHED.format(self.label, self.label)
        return self.obstacle

    def difference(self, newer: "WalTable") -> str | None:
        """Return a sentence on what has changed since, as far as it concerns readers."""
        if newer.fault is not None:
            return None if newer.fault == self.fault else newer.fault
        if self.fault is not None:
            return TOLD_AGAIN.format(self.label)
        if self.oid != newer.oid:
            return OTHER_TABLE.format(self.label)
        if self._parts != newer._parts:
            return OTHER_PARTS.format(self.label)
        return self._difference_of_shape(newer)

    def _difference_of_shape(self, newer: "WalTable") -> str | None:
        mine, theirs = self.shape, newer.shape
        if mine is None or theirs is None or _key(mine) != _key(theirs):
            return OTHER_KEY.format(self.label)
        if mine.has_row_security != theirs.has_row_security:
            return SECURITY.format(self.label)
        return None

    @property
    def _parts(self) -> frozenset[int]:
        return frozenset(member.oid for member in self.members)


def _key(shape: TableShape) -> list[tuple[str, int]]:
    return [(part.name, part.base) for part in shape.key]


def slot_name(database: str) -> str:
    """Return the name of a database's slot: lower-case letters, digits and `_`, unlike any other's.

    >>> slot_name("shop"), slot_name("Shop-2")
    ('rowsignal_shop', 'rowsignal_shop_2_e5c6a4a8')
    """
    name = f"rowsignal_{database}"
    if PLAIN.fullmatch(name) and len(name) <= 63:
        return name
    digest = hashlib.sha256(database.encode()).hexdigest()[:8]
    return f"{OTHER.sub('_', name.lower())[:54]}_{digest}"


Facts = Mapping[str, Any]


async def ask(connection: AsyncConnection, name: str, *arguments: object) -> list[Facts]:
    """Return the rows that a query of the catalogue gives."""
    result = await run_query(connection, query(name), arguments)
    return [dict(row) for row in result.mappings()]


async def wal_tables(
    connection: AsyncConnection, names: Iterable[QualifiedName]
) -> dict[QualifiedName, WalTable]:
    """Return the states of tables, also of those that are not there."""
    wanted = list(names)
    pairs = [schema for schema, _ in wanted], [name for _, name in wanted]
    rows = {
        (it["schema"], it["name"]): it
        for it in await ask(connection, "wal_tables", *pairs, PUBLICATION)
    }
    shapes = await table_shapes(connection, wanted)
    return {
        name: _table(rows[name], shapes.get(name)) if name in rows else WalTable(name)
        for name in wanted
    }


def _table(row: Facts, shape: TableShape | None) -> WalTable:
    members = tuple(Member(**facts) for facts in json.loads(row["members"] or "[]"))
    if shape is not None:
        published = [name for name in shape.columns if name in row["columns"]]
        shape = replace(shape, columns=tuple(published))
    return WalTable((row["schema"], row["name"]), row["oid"], row["is_partitioned"], members, shape)


async def published_tables(connection: AsyncConnection) -> list[QualifiedName]:
    """Return the tables of the publication."""
    rows = await ask(connection, "wal_published", PUBLICATION)
    return [(row["schema"], row["name"]) for row in rows]


async def text_readers(connection: AsyncConnection) -> TextReaders:
    """Return what reads the texts of this database's types."""
    return TextReaders(TypeFacts(**row) for row in await ask(connection, "wal_types"))
