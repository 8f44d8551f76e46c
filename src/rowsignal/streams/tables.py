"""The tables of a stream: how each is captured, and which of its changes are wanted."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Table, cast, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import InstrumentedAttribute

from rowsignal.changes import Change, ChangeFilter
from rowsignal.exceptions import TriggerInstallError, UnreadableRowError
from rowsignal.identifiers import QualifiedName
from rowsignal.mapping import (
    PrimaryKey,
    RowShape,
    RowTypes,
    Target,
    attributes_of,
    class_for,
    key_text,
    primary_key_of,
)
from rowsignal.payload import decode_json
from rowsignal.streams.loader import TableReset
from rowsignal.triggers.catalog import Capture, captures

logger = logging.getLogger("rowsignal.streams")

Columns = Sequence[InstrumentedAttribute[Any] | str]
Watched = type[Any] | Table

UNLOADABLE = "A changed row of {} cannot be loaded: {}"


@dataclass(frozen=True, slots=True)
class WatchedTables:
    """Tables by the names that their changes carry, and the filters of their changes.

    `logged` are the tables with a change log, `types` the column types of mapped classes. The
    predicate is separate from the filter: it gets rows as the ORM has them.
    """

    names: tuple[QualifiedName, ...]
    logged: frozenset[QualifiedName]
    filter: ChangeFilter
    predicate: Callable[[Change], bool] | None
    columns: dict[QualifiedName, frozenset[str]]
    types: dict[QualifiedName, RowTypes]

    def wants(self, change: Change) -> bool:
        """Tell whether a change is wanted, apart from the predicate."""
        return self.filter.matches(change)

    def typed(self, change: Change) -> Change:
        """Return a change with its row, if it has one, as the ORM has it."""
        types = self.types.get((change.schema, change.table))
        return change if types is None else types.typed(change)

    def shown(self, change: Change) -> Change | TableReset | None:
        """Return a wanted change with its row as the ORM has it, else None.

        A row that its types cannot take is a reset of its table.
        """
        if not self.wants(change):
            return None
        try:
            found = self.typed(change)
        except UnreadableRowError as error:
            return _unloadable(change, error)
        return found if self.predicate is None or self.predicate(found) else None


@dataclass(frozen=True, slots=True)
class WatchRequest:
    """The arguments of `watch`: models, and filters that need the database to be checked.

    Rows of a `Table` keep the form of PostgreSQL's JSON.
    """

    models: Sequence[Watched]
    filter: ChangeFilter
    columns: Columns | None
    pk: object

    async def find_tables(self, engine: AsyncEngine) -> WatchedTables:
        """Find the tables of models in the catalogue; raise if one cannot be watched."""
        if not self.models:
            raise ValueError("watch() needs at least one model: whose changes are wanted?")
        shapes = [_shape(engine, model) for model in self.models]
        changed = _column_names(shapes, self.columns)
        keys = _primary_keys(shapes, self.pk)
        # Joined inheritance has several tables: a change of any of them is one of the model.
        tables = {shape.name_of(table): table for shape in shapes for table in shape.tables}
        async with engine.connect() as connection:
            found = await captures(connection, list(tables))
            for capture in found:
                _check(capture)
            # The server writes the keys: 1.0 and 1.00, or a date, have the text that changes carry.
            images = await _key_images(connection, tables.values(), keys)
        names = [(capture.schema or "public", capture.table) for capture in found]
        types = self._types(engine, shapes)
        return WatchedTables(
            names=tuple(names),
            logged=frozenset(
                name for name, capture in zip(names, found, strict=True) if capture.kind == "log"
            ),
            filter=replace(self.filter, keys=images, columns=changed, predicate=None),
            predicate=self.filter.predicate,
            columns={
                name: frozenset(column.name for column in table.columns)
                for name, table in zip(names, tables.values(), strict=True)
            },
            types={
                name: types[asked]
                for name, asked in zip(names, tables, strict=True)
                if asked in types
            },
        )

    def _types(
        self, engine: AsyncEngine, shapes: Sequence[RowShape]
    ) -> dict[tuple[str | None, str], RowTypes]:
        mapped = [
            shape
            for shape, model in zip(shapes, self.models, strict=True)
            if not isinstance(model, Table)
        ]
        return RowTypes.of_shapes(mapped, engine.dialect)


def _shape(engine: AsyncEngine, model: Watched) -> RowShape:
    mapped = class_for(model) if isinstance(model, Table) else model
    return Target.of(engine, mapped).shape


def _unloadable(change: Change, error: UnreadableRowError) -> TableReset:
    label = f"{change.schema}.{change.table}"
    logger.warning("the row %s of %s cannot be loaded: %s", change.key, label, error)
    reason = UNLOADABLE.format(label, error)
    return TableReset(reason=reason, position=change.position, table=(change.schema, change.table))


def _check(capture: Capture) -> None:
    label = ".".join(filter(None, (capture.schema, capture.table)))
    if capture.oid is None:
        raise TriggerInstallError(f"There is no table {label} in this database.")
    if capture.kind is None:
        raise TriggerInstallError(
            f"{label} has no triggers, so no change of it would ever be seen;"
            " install_triggers(...) makes them."
        )


def _column_names(shapes: Sequence[RowShape], columns: Columns | None) -> frozenset[str] | None:
    """Return the database's names of columns; one of the models must have each."""
    if columns is None:
        return None
    if isinstance(columns, str) or not columns:
        raise ValueError("columns is a non-empty list of columns, or None for all of them.")
    found: set[str] = set()
    for column in columns:
        key = column if isinstance(column, str) else column.key
        having = [shape for shape in shapes if key in shape.columns] or shapes[:1]
        for shape in having:
            found |= shape.names_in_database(attributes_of(shape, [column]) or ())
    return frozenset(found)


def _primary_keys(shapes: Sequence[RowShape], pk: object) -> list[PrimaryKey] | None:
    if pk is None:
        return None
    if len(shapes) > 1:
        raise ValueError("pk= is for one model; watch several with a predicate= instead.")
    given = pk if isinstance(pk, list | set | frozenset) else [pk]
    return [primary_key_of(shapes[0].mapper, key) for key in given]


async def _key_images(
    connection: AsyncConnection, tables: Collection[Table], keys: Sequence[PrimaryKey] | None
) -> tuple[Mapping[str, Any], ...] | None:
    """Return keys as changes carry them, written by the server."""
    if keys is None:
        return None
    images = []
    for table in tables:
        columns = list(table.primary_key)
        for key in keys:
            parts = [cast(part, column.type) for part, column in zip(key, columns, strict=True)]
            values = decode_json(await connection.scalar(select(key_text(parts))) or "")
            images.append({c.name: value for c, value in zip(columns, values, strict=True)})
    return tuple(images)
