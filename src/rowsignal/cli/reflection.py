"""Tables, made from their definition in the database."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, MetaData, Table
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli.errors import FAILED, CommandError
from rowsignal.triggers import trigger_status
from rowsignal.triggers.settings import TableName, targets_of


async def tables_of(engine: AsyncEngine, subjects: Any) -> list[Table]:
    """Return each named table; without names, all tables with triggers."""
    if subjects is None:
        found = await trigger_status(engine)
        names: list[TableName] = [(one.schema, one.table) for one in found]
    else:
        names = [target.name for target in targets_of(subjects)]
    if not names:
        raise CommandError(
            "No table carries triggers, so there is nothing to watch: `rowsignal install TABLE`.",
            FAILED,
        )
    async with engine.connect() as connection:
        return await connection.run_sync(_reflect, names)


def _reflect(connection: Connection, names: Sequence[TableName]) -> list[Table]:
    metadata, tables = MetaData(), []
    for schema, name in names:
        try:
            tables.append(
                Table(name, metadata, schema=schema, autoload_with=connection, resolve_fks=False)
            )
        except NoSuchTableError:
            label = f"{schema}.{name}" if schema else name
            raise CommandError(f"There is no table {label} in this database.", FAILED) from None
    return tables
