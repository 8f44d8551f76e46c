"""A connection of our own beside the application's pool: same server, not counted against it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

Result = TypeVar("Result")

logger = logging.getLogger("rowsignal.engines")


def beside(engine: AsyncEngine, url: str | None = None) -> AsyncEngine:
    """Return an engine that connects as `engine` does (or to `url`), from a pool of its own.

    Everything that decides how a connection is made (arguments, `creator`, pool events such as
    those that fetch a token) is kept; the application's pool is neither used nor counted against.
    """
    ours = engine.sync_engine
    if url is not None:
        return create_async_engine(url, poolclass=NullPool)
    if ours.dialect.driver != "asyncpg":
        return create_async_engine(
            ours.url.set(drivername="postgresql+asyncpg"), poolclass=NullPool
        )
    pool = ours.pool.recreate()
    return AsyncEngine(Engine(pool, ours.dialect, ours.url, hide_parameters=ours.hide_parameters))


def beside_with_options(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine as `beside` does, with the execution options of `engine` as well.

    For statements of the application, such as those that `schema_translate_map` rewrites.
    """
    ours = beside(engine)
    options = engine.sync_engine.get_execution_options()
    return ours.execution_options(**options) if options else ours


class OwnConnection:
    """One connection, opened at first use; what is run on it queues up.

    It never takes part in anybody's transaction, so it sees what is committed: in autocommit, or
    in a transaction for each use where a pooler might otherwise prepare a statement on one
    connection and execute it on another. After an error, a time-out or a cancellation it is
    thrown away, and the next use opens another.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self.is_pooled = False  # known when work runs: settings must not outlast its transaction
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def run(
        self, work: Callable[[AsyncConnection], Awaitable[Result]], *, timeout: float
    ) -> Result:
        """Run `work` on the connection; `TimeoutError` after `timeout` seconds of its turn."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    connection = await self._open()
                    result = await work(connection)
                    await connection.commit()
                    return result
            except TimeoutError as error:
                await self._discard()
                raise TimeoutError(f"PostgreSQL did not answer within {timeout:g} s.") from error
            except BaseException:
                await self._discard()
                raise

    async def close(self) -> None:
        """Close the connection; a later use opens it again."""
        async with self._turn:
            await self._discard()
            await self._engine.dispose()

    async def _open(self) -> AsyncConnection:
        if self._connection is None:
            connection = await self._engine.connect()
            self._connection = connection
            self.is_pooled = not await is_direct(connection)
            if not self.is_pooled:
                await connection.rollback()
                options = {"isolation_level": "AUTOCOMMIT"}
                self._connection = await connection.execution_options(**options)
        return self._connection

    async def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await asyncio.shield(throw_away(connection))


async def throw_away(connection: AsyncConnection) -> None:
    """Close a connection for good, whatever state it is in."""
    try:
        await connection.invalidate()
        await connection.close()
    except (OSError, SQLAlchemyError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        logger.debug("a connection would not be closed: %s", error)


async def is_direct(connection: AsyncConnection) -> bool:
    """Tell whether the server's process is the one that introduced itself, and no pooler's word."""
    raw = await connection.get_raw_connection()
    result = await connection.exec_driver_sql("select pg_catalog.pg_backend_pid()")
    return raw.driver_connection is not None and (
        result.scalar_one() == raw.driver_connection.get_server_pid()
    )


async def suit_pooler(engine: AsyncEngine) -> None:
    """Prepare nothing for later on connections that lead through a pooler; call it before others.

    A pooler may run the next transaction on another server connection, where a statement of this
    name is unknown, or somebody else's. Connects once, to find out.
    """
    probe = create_async_engine(engine.url, poolclass=NullPool)
    event.listen(probe.sync_engine, "do_connect", _prepare_nothing)
    async with probe.connect() as connection:
        is_pooled = not await is_direct(connection)
    if is_pooled:
        event.listen(engine.sync_engine, "do_connect", _prepare_nothing)


def _prepare_nothing(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
    options |= {
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__{uuid4()}__",
    }
