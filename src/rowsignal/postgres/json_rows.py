"""Rows as they are now, in the form in which changes carry them: JSON values by column name.

Numbers with a point are `Decimal`, everything that JSON has no type for is PostgreSQL's text.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Select,
    Table,
    and_,
    bindparam,
    cast,
    column,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, TEXT
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.identifiers import qualify
from rowsignal.postgres.connections import beside

Values = Mapping[str, Any]

# Made once: json.loads makes another for each call that wants its numbers otherwise.
_decode = json.JSONDecoder(parse_float=Decimal).decode

PAGE = 500
ORDINAL = "rowsignal: ordinal"
# On these depends what a date, an interval, a float or a bytea looks like.
SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}


async def pin_settings(connection: AsyncConnection, *, is_local: bool) -> None:
    """Make values look alike for every role; `is_local` ends with the transaction."""
    calls = [func.set_config(name, value, is_local) for name, value in SETTINGS.items()]
    await connection.execute(select(*calls))


@asynccontextmanager
async def one_view(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Open a connection of its own, on which all that is read is of one moment."""
    ours = beside(engine)
    try:
        async with ours.connect() as connection:
            yield await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
    finally:
        await ours.dispose()


async def rows_by_key(
    connection: AsyncConnection, table: Table, keys: Sequence[Values]
) -> list[Values | None]:
    """Return the rows with these keys, in their order, in one query; None for absent ones."""
    names = [key_column.name for key_column in table.primary_key]
    # Typed by the server: a key's text is what the server made of its value.
    record: ColumnElement[Any] = literal_column(f"null::{qualify(table.name, table.schema)}")
    texts = bindparam("keys", json.dumps([dict(key) for key in keys], default=str), TEXT)
    given = func.jsonb_populate_recordset(record, cast(texts, JSONB)).table_valued(
        *(column(name, table.c[name].type) for name in names),
        with_ordinality="ordinality",
        name="given",
    )
    found = select(*table.c, given.c.ordinality.label(ORDINAL)).join_from(
        table, given, and_(*(table.c[name] == given.c[name] for name in names))
    )
    rows: list[Values | None] = [None] * len(keys)
    for (text,) in await connection.execute(_as_json(found)):
        row = dict(decode_row(text))
        rows[row.pop(ORDINAL) - 1] = row
    return rows


async def all_rows(connection: AsyncConnection, table: Table) -> AsyncIterator[list[Values]]:
    """Yield the rows of a table in pages, in bounded memory."""
    result = await connection.stream(
        _as_json(select(*table.c)), execution_options={"yield_per": PAGE}
    )
    async for page in result.partitions(PAGE):
        yield [decode_row(text) for (text,) in page]


def decode_row(text: str) -> Values:
    """Decode one row; no digit is lost."""
    row: Values = _decode(text)
    return row


def _as_json(rows: Select[Any]) -> Select[Any]:
    subquery = rows.subquery("r")
    # `r.*`: a bare `r` would be the column of that name, if the table has one.
    return select(cast(func.to_json(literal_column("r.*")), TEXT)).select_from(subquery)
