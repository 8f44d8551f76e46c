"""Tables whose changes are read from the WAL, and what the tests around it need."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.relay import install_wal_capture, uninstall_wal_capture
from support.change_log import connect


@dataclass
class WalShop:
    """A database with a published table `item(id, v)`; no trigger, no log."""

    engine: AsyncEngine
    sql: asyncpg.Connection
    _stack: AsyncExitStack = field(repr=False)

    async def connect(self) -> asyncpg.Connection:
        """Open one more connection."""
        connection = await connect(self.engine)
        self._stack.push_async_callback(connection.close, timeout=2)
        return connection

    async def capture(self, *tables: str) -> None:
        """Publish the changes of more tables."""
        await install_wal_capture(self.engine, tables)

    async def insert(self, *ids: int) -> None:
        """Insert items in one transaction."""
        await self.sql.execute("insert into item select unnest($1::int[]), 0", list(ids))

    async def drop_slot(self) -> None:
        """Drop the slot once the server has taken notice that its reader is gone."""
        name = (await self.slot())["slot_name"]
        while await self.slot() is not None:
            try:
                await self.sql.execute(f"select pg_drop_replication_slot('{name}')")
            except asyncpg.ObjectInUseError:
                await asyncio.sleep(0.05)

    async def slot(self) -> Any:
        """Return the slot's row; None where there is none."""
        return await self.sql.fetchrow(
            "select * from pg_replication_slots where database = current_database()"
        )


@asynccontextmanager
async def open_wal_shop(engine: AsyncEngine) -> AsyncIterator[WalShop]:
    """Make the published table in an empty database; drop the slot in the end."""
    async with AsyncExitStack() as stack:
        connection = await connect(engine)
        stack.push_async_callback(connection.close, timeout=2)
        await connection.execute("create table item (id integer primary key, v integer not null)")
        await connection.execute("alter table item replica identity full")
        shop = WalShop(engine, connection, stack)
        await shop.capture("public.item")
        try:
            yield shop
        finally:
            await engine.dispose()  # connections that a restart has cut
            await uninstall_wal_capture(engine)


@asynccontextmanager
async def published(engine: AsyncEngine, *tables: str) -> AsyncIterator[None]:
    """Publish tables with all their values for the length of a block."""
    async with engine.begin() as connection:
        for table in tables:
            await connection.exec_driver_sql(f"alter table {table} replica identity full")
    await install_wal_capture(engine, tables)
    try:
        yield
    finally:
        await engine.dispose()  # connections that a restart has cut
        await uninstall_wal_capture(engine)


@asynccontextmanager
async def separate_wal_shop(server: EmbeddedPostgres) -> AsyncIterator[WalShop]:
    """Make the published table on a server of the test's own."""
    engine = create_async_engine(server.url)
    async with open_wal_shop(engine) as shop:
        yield shop
    await engine.dispose()
