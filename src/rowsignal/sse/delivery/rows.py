"""Queries for the rows of a view, by its conditions and keys."""

from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.exceptions import NotWatchedError
from rowsignal.postgres import json_rows
from rowsignal.postgres.json_rows import DIALECT, KeyColumn, TableShape, pin_settings
from rowsignal.sse.access.column_types import plain_type
from rowsignal.sse.access.events import RowKey
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.filters import where_clause
from rowsignal.sse.access.views import TableView

__all__ = ["all_rows", "current_row", "having_keys", "pin_settings", "shape_of"]


async def shape_of(connection: AsyncConnection, exposure: Exposure) -> TableShape:
    """Return the shape by which the rows of an offered table are read."""
    shapes = await json_rows.table_shapes(connection, [exposure.full_name])
    if exposure.full_name not in shapes:
        raise NotWatchedError(f"There is no table {exposure.name} in this database.")
    return shapes[exposure.full_name]


def having_keys(
    query: sa.Select[Any], exposure: Exposure, keys: Iterable[RowKey]
) -> sa.Select[Any]:
    """Narrow a query on an offered table to the rows with these keys."""
    table = exposure.table
    shape = TableShape(*exposure.full_name, 0, (), tuple(map(_key_column, table.primary_key)))
    texts = json_rows.keys_as_json(shape, _named(exposure, keys))
    given = json_rows.given_keys(shape, sa.bindparam(None, texts, sa.Text(), unique=True))
    same = (table.c[part.name] == given.c[f"k{place}"] for place, part in enumerate(shape.key))
    return query.join(given, sa.and_(*same))


def _key_column(column: sa.Column[Any]) -> KeyColumn:
    type_ = plain_type(column.type).compile(DIALECT)
    return KeyColumn(column.name, type_, base=0, equality="=", is_exact=True)


def _named(exposure: Exposure, keys: Iterable[RowKey]) -> list[Mapping[str, Any]]:
    return [dict(zip(exposure.key, key, strict=True)) for key in keys]


async def current_row(
    connection: AsyncConnection, exposure: Exposure, key: RowKey, view: TableView
) -> Row | None:
    """Return the row with this key, if it meets the view's conditions.

    PostgreSQL evaluates them, so a hidden row takes as long as a missing one.
    """
    shape = await shape_of(connection, exposure)
    wanted = sorted({*exposure.key, *exposure.columns})
    condition = partial(where_clause, view.conditions)
    keys = _named(exposure, [key])
    found = json_rows.all_rows(connection, shape, wanted, condition, keys)
    # The generator holds a cursor: it must be closed before the connection is used again.
    async with aclosing(found) as pages:
        page = await anext(pages, None)
    return page[0].values if page else None


async def all_rows(
    connection: AsyncConnection, exposure: Exposure, view: TableView
) -> AsyncGenerator[list[Row], None]:
    """Yield the current rows of a view in pages, in bounded memory."""
    shape = await shape_of(connection, exposure)
    wanted = sorted({*exposure.key, *exposure.columns, *view.filter_columns})
    condition = partial(where_clause, view.conditions)
    keys = None if view.keys is None else _named(exposure, view.keys)
    found = json_rows.all_rows(connection, shape, wanted, condition, keys)
    async with aclosing(found) as pages:
        async for page in pages:
            yield [row.values for row in page]
