"""Rows as PostgreSQL writes them in JSON: current ones by key, and all of a table in a snapshot."""

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.identifiers import qualify
from rowsignal.postgres.json_rows import decode_row
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.filters import where_clause
from rowsignal.sse.access.views import RowKey, TableView

PAGE = 500
PLACE = "rowsignal: place"
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


def _as_json(query: sa.Select[Any]) -> sa.Select[Any]:
    rows = query.subquery("r")
    return sa.select(sa.cast(sa.func.to_json(sa.literal_column("r.*")), sa.Text)).select_from(rows)


def _given(exposure: Exposure, keys: Sequence[Mapping[str, Any]]) -> sa.TableValuedAlias:
    """Return keys as a table, each value of its column's type, with their places in `n`."""
    table = exposure.table
    record: sa.ColumnElement[Any] = sa.literal_column(f"null::{qualify(table.name, table.schema)}")
    # Bound as text: the driver would encode it as JSON once more.
    texts = json.dumps([dict(key) for key in keys])
    items = sa.cast(sa.bindparam(None, texts, sa.Text(), unique=True), JSONB)
    columns = [sa.column(name, table.c[name].type) for name in exposure.key]
    given = sa.func.jsonb_populate_recordset(record, items)
    return given.table_valued(*columns, with_ordinality="ordinality", name="given")


def _of_given(exposure: Exposure, given: sa.TableValuedAlias) -> sa.ColumnElement[bool]:
    return sa.and_(*(exposure.table.c[name] == given.c[name] for name in exposure.key))


def having_keys(
    query: sa.Select[Any], exposure: Exposure, keys: Iterable[RowKey]
) -> sa.Select[Any]:
    """Narrow a query on an offered table to the rows with these keys."""
    given = _given(exposure, [dict(zip(exposure.key, key, strict=True)) for key in keys])
    return query.join(given, _of_given(exposure, given))


async def current_rows(
    connection: AsyncConnection,
    exposure: Exposure,
    keys: Sequence[Mapping[str, Any]],
    columns: Iterable[str],
) -> list[Row | None]:
    """Return the rows with these keys as they are now, in their order; None for absent ones."""
    table, given = exposure.table, _given(exposure, keys)
    wanted = [table.c[name] for name in sorted({*exposure.key, *columns})]
    query = sa.select(*wanted, given.c.ordinality.label(PLACE))
    result = await connection.execute(_as_json(query.join(given, _of_given(exposure, given))))
    found: list[Row | None] = [None] * len(keys)
    for (text,) in result:
        row = dict(decode_row(text))
        found[row.pop(PLACE) - 1] = row
    return found


async def current_row(
    connection: AsyncConnection, exposure: Exposure, key: RowKey, view: TableView
) -> Row | None:
    """Return the row with this key, if it meets the view's conditions.

    PostgreSQL decides on them: a row out of sight takes as long as one that is not there.
    """
    wanted = sorted({*exposure.key, *exposure.columns})
    query = sa.select(*(exposure.table.c[name] for name in wanted))
    query = having_keys(query.where(where_clause(view.conditions, exposure.table)), exposure, [key])
    text = (await connection.execute(_as_json(query))).scalar_one_or_none()
    return None if text is None else decode_row(text)


async def all_rows(
    connection: AsyncConnection, exposure: Exposure, view: TableView
) -> AsyncGenerator[list[Row], None]:
    """Yield the current rows of a view in pages, in bounded memory."""
    table = exposure.table
    wanted = sorted({*exposure.key, *exposure.columns, *view.filter_columns})
    query = sa.select(*(table.c[name] for name in wanted))
    query = query.where(where_clause(view.conditions, table))
    if view.keys is not None:
        query = having_keys(query, exposure, view.keys)
    result = await connection.stream(_as_json(query), execution_options={"yield_per": PAGE})
    async for page in result.partitions(PAGE):
        yield [decode_row(text) for (text,) in page]
