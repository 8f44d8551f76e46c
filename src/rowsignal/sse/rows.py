"""Rows as PostgreSQL writes them in JSON: current ones by key, and all of a table in a snapshot."""

import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.identifiers import qualify
from rowsignal.sse.exposures import Exposure, Row
from rowsignal.sse.views import RowKey, TableView
from rowsignal.sse.where import where_clause

PAGE = 500
# What a key or a time looks like follows these settings (PostgreSQL manual, 20.11).
SETTINGS: Mapping[str, str] = {
    "TimeZone": "UTC",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}


async def pin_settings(connection: AsyncConnection, *, is_local: bool) -> None:
    """Make texts of values the same whatever the role's or the database's settings are."""
    calls = [sa.func.set_config(name, value, is_local) for name, value in SETTINGS.items()]
    await connection.execute(sa.select(*calls))


def decode(text: str) -> Row:
    """Decode one row; numbers keep all their digits."""
    row: Row = json.loads(text, parse_float=Decimal)
    return row


def _as_json(query: sa.Select[Any]) -> sa.Select[Any]:
    rows = query.subquery("r")
    return sa.select(sa.cast(sa.func.to_json(sa.literal_column("r.*")), sa.Text)).select_from(rows)


def _keys_given(exposure: Exposure, texts: str) -> sa.Select[Any]:
    """Return the keys in a JSON array of objects, each value of its column's type."""
    table = exposure.table
    record: sa.ColumnElement[Any] = sa.literal_column(f"null::{qualify(table.name, table.schema)}")
    # Bound as text: the driver would encode it as JSON once more.
    items = sa.cast(sa.bindparam(None, texts, sa.Text(), unique=True), JSONB)
    given = sa.func.jsonb_populate_recordset(record, items)
    columns = [sa.column(name, table.c[name].type) for name in exposure.key]
    return sa.select(*given.table_valued(*columns, name="given").c)


async def current_rows(
    connection: AsyncConnection,
    exposure: Exposure,
    keys: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
) -> dict[RowKey, Row]:
    """Return the rows with these keys that are there now, by their keys' values."""
    table = exposure.table
    given = _keys_given(exposure, json.dumps([dict(key) for key in keys]))
    primary = [table.c[name] for name in exposure.key]
    # An array makes PostgreSQL use the key's index whatever it thinks of the table's size.
    matches = (
        primary[0] == sa.func.any(sa.func.array(given.scalar_subquery()))
        if len(primary) == 1
        else sa.tuple_(*primary).in_(given)
    )
    wanted = [table.c[name] for name in {*exposure.key, *columns}]
    result = await connection.execute(_as_json(sa.select(*wanted).where(matches)))
    rows = [decode(text) for (text,) in result]
    return {tuple(row[name] for name in exposure.key): row for row in rows}


async def all_rows(
    connection: AsyncConnection, exposure: Exposure, view: TableView
) -> AsyncIterator[list[Row]]:
    """Yield the current rows of a view in pages, in bounded memory."""
    table = exposure.table
    wanted = {*exposure.key, *exposure.columns, *view.filter_columns}
    query = sa.select(*(table.c[name] for name in wanted))
    query = query.where(where_clause(view.conditions, table))
    if view.keys is not None:
        texts = json.dumps([dict(zip(exposure.key, key, strict=True)) for key in view.keys])
        primary = sa.tuple_(*(table.c[name] for name in exposure.key))
        query = query.where(primary.in_(_keys_given(exposure, texts)))
    result = await connection.stream(_as_json(query), execution_options={"yield_per": PAGE})
    async for page in result.partitions(PAGE):
        yield [decode(text) for (text,) in page]
