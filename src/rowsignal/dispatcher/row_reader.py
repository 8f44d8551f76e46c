"""Many waited-for rows in one query, each as it is committed now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    Row,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.mapping import KeyColumns, PrimaryKey, RowShape
from rowsignal.payload import Key, decode_json, parse_key

Values = tuple[Any, ...]

ROWS_A_QUERY = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was found: its column values, and its key in the words of each table's trigger.

    `keys` is empty where it was not asked for, and None stands for a table that has no hints.
    """

    values: Values
    keys: tuple[Key | None, ...]


async def read_rows(
    connection: AsyncConnection,
    shape: RowShape,
    primary_keys: Sequence[PrimaryKey],
    *,
    key_columns: KeyColumns = (),
) -> list[Found | None]:
    """Return the rows with these primary keys, in their order; None where there is none."""
    found: list[Found | None] = [None] * len(primary_keys)
    statement = shape.query(key_columns)
    options = {"schema_translate_map": shape.schema_translate_map} if shape.translation else {}
    for start in range(0, len(primary_keys), ROWS_A_QUERY):
        part = primary_keys[start : start + ROWS_A_QUERY]
        parameters = {f"k{n}": list(values) for n, values in enumerate(zip(*part, strict=True))}
        result = await connection.execute(statement, parameters, execution_options=options)
        for row in result:
            found[start + row[0] - 1] = _found(row, len(shape.columns))
    return found


def _found(row: Row[Any], width: int) -> Found:
    texts = row[width + 1 :]
    keys = tuple(None if text is None else parse_key(decode_json(text)) for text in texts)
    return Found(tuple(row[1 : width + 1]), keys)
