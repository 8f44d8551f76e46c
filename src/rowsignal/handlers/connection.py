"""The connection of a partition's handlers, open while there are changes to handle."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.handlers.leases import LeaseLostError, Partition
from rowsignal.postgres.connections import driver_of, is_direct, throw_away
from rowsignal.postgres.statements import query

# A worker that is stopped inside a transaction, and whose connection the next holder cannot end
# (another role, a pooler), keeps its locks for this many seconds after the handler's timeout.
IDLE_MARGIN = 60.0


class HandlerConnection:
    """One connection for handlers, closed after an error or an idle timeout.

    It registers at the server for its partition, so that the next holder can terminate it.
    """

    def __init__(self, engine: AsyncEngine, partition: Partition, timeout: float) -> None:
        self._engine = engine
        self._partition = partition
        self._idle = f"{round((timeout + IDLE_MARGIN) * 1000)}ms"
        self._connection: AsyncConnection | None = None
        self._driver: asyncpg.Connection | None = None
        self.is_pooled = False

    async def open(self) -> tuple[AsyncConnection, asyncpg.Connection]:
        """Return the connection, and asyncpg's own connection for cheap statements."""
        if self._connection is not None and self._driver is not None:
            return self._connection, self._driver
        connection = await self._engine.connect()
        try:
            adapted: Any = (await connection.get_raw_connection()).dbapi_connection
            if adapted.autocommit:  # position and effect must be one transaction
                connection = await connection.execution_options(isolation_level="READ COMMITTED")
            self.is_pooled = not await is_direct(connection)
            await connection.rollback()
            driver = await driver_of(connection)
            if not self.is_pooled:
                await self._introduce(driver)
        except BaseException:
            await throw_away(connection)
            raise
        self._connection, self._driver = connection, driver
        return connection, driver

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend asyncpg's connection for a statement that is a transaction by itself.

        Behind a pooler it is wrapped in an explicit transaction: the driver prepares and executes
        in two steps.
        """
        _, driver = await self.open()
        if self.is_pooled:
            async with driver.transaction():
                yield driver
        else:
            yield driver

    async def _introduce(self, driver: asyncpg.Connection) -> None:
        await driver.execute(f"set idle_in_transaction_session_timeout = '{self._idle}'")
        if not await driver.fetchval(query("consumer_connect"), *self._partition.key):
            raise LeaseLostError

    async def begin(self) -> None:
        """Limit the idle time of a transaction; behind a pooler, of this transaction only."""
        connection, _ = await self.open()
        if self.is_pooled:
            setting = "select set_config('idle_in_transaction_session_timeout', $1, true)"
            await connection.exec_driver_sql(setting, (self._idle,))

    @property
    def is_broken(self) -> bool:
        """Tell whether the connection is unusable."""
        return (
            self._connection is None
            or self._connection.invalidated
            or self._driver is None
            or self._driver.is_closed()
        )

    async def discard(self) -> None:
        """Close the connection; the next use opens a new one."""
        connection, self._connection, self._driver = self._connection, None, None
        if connection is not None:
            await throw_away(connection)
