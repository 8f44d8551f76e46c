"""The tables that a relay carries, and their carried columns."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import TriggerInstallError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_rows import TableShape
from rowsignal.triggers import trigger_status
from rowsignal.triggers.settings import targets_of

Carried = Mapping[Any, Sequence[str] | None] | Iterable[Any] | None
Columns = dict[QualifiedName, tuple[str, ...] | None]


async def carried_tables(engine: AsyncEngine, tables: Carried) -> Columns:
    """Return the columns to carry by table, None for all; without tables, of all with a log.

    Raises `TriggerInstallError` where nothing has a log.
    """
    if tables is None:
        found = await trigger_status(engine)
        names = [(it.schema or "public", it.table) for it in found if it.kind == "log"]
        if not names:
            raise TriggerInstallError(
                "No table has a change log, so there is nothing to relay: install_triggers(...,"
                " log=True) or `rowsignal install TABLE` makes one."
            )
        return dict.fromkeys(names)
    return named_columns(tables)


def named_columns(tables: Mapping[Any, Sequence[str] | None] | Iterable[Any]) -> Columns:
    """Return the columns to carry by table, None for all, of tables that are named."""
    if isinstance(tables, str):
        tables = [tables]
    pairs: Iterable[tuple[Any, Sequence[str] | None]]
    pairs = tables.items() if isinstance(tables, Mapping) else ((it, None) for it in tables)
    carried = {
        (schema or "public", name): tuple(columns) if columns else None
        for source, columns in pairs
        for schema, name in (target.name for target in targets_of([source]))
    }
    if not carried:
        raise ValueError("tables names at least one table, or is None for all that have a log.")
    return carried


def columns_of(shape: TableShape, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """Return the columns of a table that are carried, in the table's order."""
    if wanted is None:
        return shape.columns
    return tuple(name for name in shape.columns if name in wanted)
