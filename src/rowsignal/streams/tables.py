"""What a stream is about: its tables, how each is captured, and which of their changes count."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import MetaData, Table, cast, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.orm import InstrumentedAttribute

from rowsignal.changes import Change, ChangeFilter
from rowsignal.exceptions import TriggerInstallError
from rowsignal.mapping import PrimaryKey, RowShape, Target, attributes_of, key_text, primary_key_of
from rowsignal.payload import decode_json
from rowsignal.triggers.catalog import Capture, captures

Columns = Sequence[InstrumentedAttribute[Any] | str]
TableName = tuple[str, str]


@dataclass(frozen=True, slots=True)
class StreamedTable:
    """A table under the name that its changes carry, how they come, and which of them count."""

    name: TableName
    table: Table
    capture: Capture
    filter: ChangeFilter

    @property
    def is_logged(self) -> bool:
        """Tell whether its changes go to the change log."""
        return self.capture.kind == "log"

    def wants(self, change: Change) -> bool:
        """Tell whether a change counts."""
        return self.filter.matches(change)


async def find_tables(
    engine: AsyncEngine,
    models: Sequence[type[Any]],
    common: ChangeFilter,
    columns: Columns | None,
    pk: object,
) -> dict[TableName, StreamedTable]:
    """Ask the catalogue about the tables of models; raise for what can not be watched."""
    if not models:
        raise ValueError("watch() needs at least one model: whose changes are wanted?")
    shapes = [Target.of(engine, model).shape for model in models]
    names = _column_names(shapes, columns)
    keys = _primary_keys(shapes, pk)
    tables = {shape.name_of(table): table for shape in shapes for table in shape.tables}
    async with engine.connect() as connection:
        found = await captures(connection, list(tables))
        for capture in found:
            _check(capture)
        rows = await _key_images(connection, tables.values(), keys)
    wanted = replace(common, keys=rows, columns=names)
    streamed = (
        _streamed(table, capture, wanted)
        for table, capture in zip(tables.values(), found, strict=True)
    )
    return {table.name: table for table in streamed}


def _check(capture: Capture) -> None:
    label = ".".join(filter(None, (capture.schema, capture.table)))
    if capture.oid is None:
        raise TriggerInstallError(f"There is no table {label} in this database.")
    if capture.kind is None:
        raise TriggerInstallError(
            f"{label} has no triggers, so nothing would ever be seen of it; install_triggers(...)"
            " makes them."
        )


def _streamed(table: Table, capture: Capture, wanted: ChangeFilter) -> StreamedTable:
    schema = capture.schema or "public"
    placed = table.to_metadata(MetaData(), schema=schema)
    return StreamedTable((schema, capture.table), placed, capture, wanted)


def _column_names(shapes: Sequence[RowShape], columns: Columns | None) -> frozenset[str] | None:
    """Return the database's names of columns that any of the models must have."""
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
    """Return keys as changes carry them: only the server knows how it writes a value."""
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
