"""The query that reads many waited-for rows at once, as committed now."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.mapping import PrimaryKey, RowQuery, RowShape
from rowsignal.payload import Key, decode_json, parse_key

Values = tuple[Any, ...]

UNREAD: Any = object()  # stands for the value of a column that was not asked for


@dataclass(frozen=True, slots=True)
class RowState:
    """The state of a row, as a query read it.

    `values` has a place for each column of the shape. `keys` holds the key as the trigger of each
    table writes it: empty if it was not requested, None for a table without hints. `holds` is the
    result of the criterion, if there was one.
    """

    values: Values
    keys: tuple[Key | None, ...]
    holds: bool | None = None


def key_parameters(keys: Sequence[PrimaryKey], prefix: str = "k") -> dict[str, list[Any]]:
    """Return the keys as one array for each of their columns."""
    return {f"{prefix}{n}": list(values) for n, values in enumerate(zip(*keys, strict=True))}


async def read_rows(
    connection: AsyncConnection,
    shape: RowShape,
    wanted: RowQuery,
    keys: Sequence[PrimaryKey],
    parameters: Sequence[Values] = (),
) -> list[RowState | None]:
    """Return the rows with these primary keys, in their order; None for a missing row.

    `parameters` are the values of the criterion's parameters, for each key.
    """
    found: list[RowState | None] = [None] * len(keys)
    options = {"schema_translate_map": shape.schema_translate_map} if shape.translation else {}
    places = _places(shape, wanted)
    binds = key_parameters(keys) | key_parameters(parameters, "p")
    for row in await connection.execute(shape.query(wanted), binds, execution_options=options):
        found[row[0] - 1] = _found(row, wanted, places)
    return found


def _places(shape: RowShape, wanted: RowQuery) -> list[int | None] | None:
    """Return the place of each column of the shape in a row; None if all columns were read."""
    if len(wanted.attributes) == len(shape.columns):
        return None
    place = {name: number for number, name in enumerate(wanted.attributes, start=1)}
    return [place.get(name) for name in shape.columns]


def _found(row: Row[Any], wanted: RowQuery, places: list[int | None] | None) -> RowState:
    width = len(wanted.attributes)
    texts = row[width + 1 : width + 1 + len(wanted.key_columns)]
    keys = tuple(None if text is None else parse_key(decode_json(text)) for text in texts)
    holds = row[-1] if wanted.criterion is not None else None
    if places is None:
        return RowState(tuple(row[1 : width + 1]), keys, holds)
    return RowState(tuple(UNREAD if p is None else row[p] for p in places), keys, holds)
