"""The offered tables of the service: the configured ones, or all with triggers."""

from collections.abc import Mapping

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.exceptions import NotFoundError
from rowsignal.postgres.statements import query
from rowsignal.sse.access.exposures import Exposure, exposures_of


async def offered_tables(
    engine: AsyncEngine, wanted: Mapping[str, list[str] | None], *, key_secret: bytes
) -> dict[str, Exposure]:
    """Return the exposures of the wanted tables, or of all tables with triggers.

    Raises `NotFoundError` for a wanted table that does not exist.
    """
    async with engine.connect() as connection:
        names = [_split(name) for name in wanted] or await _watched(connection)
        tables = {name: await _reflect(connection, *name) for name in names}
    columns = {_split(name): columns for name, columns in wanted.items()}
    offered = {table: columns.get(name) for name, table in tables.items()}
    return exposures_of(offered, key_secret=key_secret)


async def _watched(connection: AsyncConnection) -> list[tuple[str, str]]:
    found = await connection.execute(sa.text(query("service_tables")))
    return [(schema, name) for schema, name in found]


async def _reflect(connection: AsyncConnection, schema: str, name: str) -> sa.Table:
    def reflect(sync: sa.Connection) -> sa.Table:
        return sa.Table(name, sa.MetaData(), schema=schema, autoload_with=sync, resolve_fks=False)

    try:
        return await connection.run_sync(reflect)
    except sa.exc.NoSuchTableError:
        raise NotFoundError(f"There is no table {schema}.{name}: see ROWSIGNAL_TABLES.") from None


def _split(name: str) -> tuple[str, str]:
    schema, dot, table = name.partition(".")
    return (schema, table) if dot else ("public", name)
