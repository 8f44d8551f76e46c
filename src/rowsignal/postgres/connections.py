"""Side connections: beside the application's pool, to the same server."""

import asyncio
import inspect
import logging
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
from sqlalchemy import event
from sqlalchemy.engine import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from rowsignal.exceptions import PoolerError, UnavailableError
from rowsignal.postgres.errors import (
    describe,
    is_outage,
    is_pooler_conflict,
    is_stale,
    sqlstate,
)
from rowsignal.postgres.statements import query

Result = TypeVar("Result")

logger = logging.getLogger("rowsignal.engines")

LIBPQ_OPTION = re.compile(r"-c\s*([\w.]+)=((?:\\.|\S)*)")
POOLER_ADVICE = (
    "A connection pooler is in between, for which this engine is not made ({}). Behind PgBouncer in"
    " transaction mode pass connect_args={{'statement_cache_size': 0,"
    " 'prepared_statement_cache_size': 0, 'prepared_statement_name_func': lambda:"
    " f'__{{uuid4()}}__'}}; statement mode does not work. Or let Listener(engine, listen_url=...)"
    " lead to PostgreSQL itself."
)


def beside(engine: AsyncEngine, url: str | None = None) -> AsyncEngine:
    """Return an engine with its own pool that connects as `engine` does, or to `url`.

    Everything that decides how a connection is made is kept (arguments, `creator`, pool events such
    as those that fetch a token); the application's pool is not used. With a `url`, or for another
    driver than asyncpg, `connect_args` are kept.
    """
    ours = engine.sync_engine
    # The pool knows all that decides how a connection is made; copying arguments would not.
    if url is None and ours.dialect.driver == "asyncpg":
        pool = ours.pool.recreate()
        return AsyncEngine(
            Engine(pool, ours.dialect, ours.url, hide_parameters=ours.hide_parameters)
        )
    address = make_url(url) if url is not None else ours.url
    return create_async_engine(
        address.set(drivername="postgresql+asyncpg"),
        poolclass=NullPool,
        connect_args=connect_arguments(ours),
        hide_parameters=ours.hide_parameters,
    )


def beside_with_options(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine as `beside` does, with the execution options of `engine` as well.

    For statements of the application, such as those that `schema_translate_map` rewrites.
    """
    ours = beside(engine)
    options = engine.sync_engine.get_execution_options()
    return ours.execution_options(**options) if options else ours


def connect_arguments(engine: Engine) -> dict[str, Any]:
    """Return an engine's `connect_args` in asyncpg's terms; SQLAlchemy has no interface for them.

    They are in the closure of the function that connects, mixed with arguments from the URL.
    """
    creator = engine.pool._creator
    if not inspect.isfunction(creator):
        return {}
    parameters = inspect.getclosurevars(creator).nonlocals.get("cparams")
    if not isinstance(parameters, dict):
        return {}
    _, of_url = engine.dialect.create_connect_args(engine.url)
    given = {name: value for name, value in parameters.items() if name not in of_url}
    return given if engine.dialect.driver == "asyncpg" else _in_words_of_asyncpg(given)


def _in_words_of_asyncpg(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate arguments of libpq: `options` with -c, the application's name, TLS."""
    settings = dict(LIBPQ_OPTION.findall(str(arguments.get("options", ""))))
    if "application_name" in arguments:
        settings["application_name"] = str(arguments["application_name"])
    translated: dict[str, Any] = {"server_settings": settings} if settings else {}
    if "sslmode" in arguments:
        translated["ssl"] = arguments["sslmode"]
    return translated


def attempt_delays() -> Iterator[float]:
    """Yield the seconds between attempts to connect: doubling to 2, with jitter."""
    ceiling = 0.05
    while True:
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- spreads clients, guards nothing
        ceiling = min(ceiling * 2, 2.0)


class Attempts:
    """Limits the rate of attempts to connect, whatever the number of callers."""

    def __init__(self, delays: Callable[[], Iterator[float]] = attempt_delays) -> None:
        self.have_worked = False
        self._make_delays = delays
        self._delays = delays()
        self._not_before = 0.0
        self._reason, self._is_pooler = "", False

    def check(self) -> None:
        """Raise the error of the last attempt until the next attempt is allowed."""
        # Hundreds of waits would otherwise connect at once to a server that comes up.
        if time.monotonic() < self._not_before:
            if self._is_pooler:
                raise PoolerError(POOLER_ADVICE.format(self._reason))
            raise UnavailableError(f"PostgreSQL cannot be reached just now: {self._reason}")

    def failed(self, error: BaseException) -> None:
        """Delay the next attempt, longer each time."""
        self._reason, self._is_pooler = describe(error), is_pooler_conflict(error)
        self._not_before = time.monotonic() + next(self._delays)

    def forgive(self) -> None:
        """Allow an attempt at once: the server answers."""
        self._not_before = 0.0
        self._delays = self._make_delays()

    def worked(self) -> None:
        """Reset the delays after a success."""
        self.have_worked = True
        self.forgive()


class SideConnection:
    """One connection beside the pool, opened at first use; calls on it run one after another.

    It never takes part in a caller's transaction, so it sees committed rows only. It works in
    autocommit; behind a pooler, which might prepare a statement on one connection and execute it on
    another, in one transaction per call. If the connection was lost while idle, it is replaced and
    the work run again, so `work` must be repeatable. After a timeout, a cancellation or an error
    other than a refused statement, the connection is discarded.

    `settings` are PostgreSQL's; through a pooler they last for one transaction.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        settings: Mapping[str, str] | None = None,
        attempts: Attempts | None = None,
    ) -> None:
        self._engine = engine
        self._settings = {"idle_session_timeout": "0"} | dict(settings or {})
        self.attempts = attempts or Attempts()
        self.is_pooled = False  # known when work runs: settings must not outlast its transaction
        self._connection: AsyncConnection | None = None
        self._turn = asyncio.Lock()

    async def run(
        self, work: Callable[[AsyncConnection], Awaitable[Result]], *, timeout: float
    ) -> Result:
        """Run `work` on the connection; `TimeoutError` after `timeout` seconds of its turn."""
        # asyncpg runs one query at a time on a connection.
        async with self._turn:
            limit = asyncio.timeout(timeout)
            try:
                async with limit:
                    return await self._run(work)
            except TimeoutError as error:
                if not limit.expired():
                    raise
                raise TimeoutError(f"PostgreSQL did not answer within {timeout:g} s.") from error

    async def close(self) -> None:
        """Close the connection; a later use opens it again."""
        async with self._turn:
            await self._discard()
            await self._engine.dispose()

    async def _run(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        was_open = self._connection is not None
        try:
            return await self._attempt(work)
        except Exception as error:
            # A connection that has just been opened was not lost while idle: its error is real.
            if not was_open or not (is_outage(error) or is_stale(error)):
                raise
            await self._discard()
        return await self._attempt(work)

    async def _attempt(self, work: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        try:
            connection = await self._open()
            if self.is_pooled:
                await self._set(connection, is_local=True)
            result = await work(connection)
            await connection.commit()
        except BaseException as error:
            await self._recover(error)
            if is_pooler_conflict(error):
                raise PoolerError(POOLER_ADVICE.format(describe(error))) from error
            raise
        return result

    async def _open(self) -> AsyncConnection:
        if self._connection is None:
            self.attempts.check()
            try:
                self._connection = await self._connect()
            except Exception as error:
                self.attempts.failed(error)
                raise
            self.attempts.worked()
        return self._connection

    async def _connect(self) -> AsyncConnection:
        connection = self._connection = await self._engine.connect()
        self.is_pooled = not await is_direct(connection)
        # The isolation level of a connection cannot be set inside a transaction.
        await connection.rollback()
        if not self.is_pooled:
            connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await self._set(connection, is_local=False)
            await connection.commit()
        return connection

    async def _set(self, connection: AsyncConnection, *, is_local: bool) -> None:
        names, values = list(self._settings), list(self._settings.values())
        await connection.exec_driver_sql(query("side_settings"), (names, values, is_local))

    async def _recover(self, error: BaseException) -> None:
        """Keep the connection if the server refused a statement, else discard it."""
        connection = self._connection
        # An error with a SQLSTATE is the answer of a server that is well.
        is_answer = sqlstate(error) is not None and not (is_outage(error) or is_stale(error))
        if connection is None or self.is_pooled or not is_answer:
            await self._discard()
            return
        try:
            await connection.rollback()
        except Exception as failure:  # noqa: BLE001 -- whatever it was, another connection serves
            logger.debug("a connection cannot be used again: %s", describe(failure))
            await self._discard()

    async def _discard(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await throw_away(connection)


OwnConnection = SideConnection  # its name in 0.1


@asynccontextmanager
async def lent(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """Lend a connection of an engine's pool; close it if the pool has been disposed of meanwhile.

    SQLAlchemy would put it back into the old pool, where it would stay open.
    """
    pool = engine.pool
    async with engine.connect() as connection:
        try:
            yield connection
        finally:
            if engine.pool is not pool:
                await throw_away(connection)


async def throw_away(connection: AsyncConnection) -> None:
    """Close a connection in any state; a cancellation takes effect when it is closed."""
    closing = asyncio.ensure_future(_close(connection))
    try:
        await asyncio.shield(closing)
    except asyncio.CancelledError:
        await asyncio.wait([closing])
        # An event loop that ends cancels the shielded task as well, even before it has begun. After
        # half of it SQLAlchemy would keep the connection as one that is in use.
        if closing.cancelled():
            await _close(connection)
        raise


async def _close(connection: AsyncConnection) -> None:
    try:
        await connection.invalidate()
        await connection.close()
    except (OSError, SQLAlchemyError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        logger.debug("a connection could not be closed: %s", describe(error))


async def driver_of(connection: AsyncConnection) -> asyncpg.Connection:
    """Return asyncpg's own connection: rows cost half as much without SQLAlchemy's layer."""
    driver: Any = (await connection.get_raw_connection()).driver_connection
    if driver.is_closed():  # the server restarted while the connection was in the pool
        await connection.invalidate()
        driver = (await connection.get_raw_connection()).driver_connection
    return driver


async def is_direct(connection: AsyncConnection) -> bool:
    """Tell whether the connection leads to a server process directly, not through a pooler."""
    raw = await connection.get_raw_connection()
    result = await connection.exec_driver_sql("select pg_catalog.pg_backend_pid()")
    return raw.driver_connection is not None and (
        # A pooler tells its clients a number of its own.
        result.scalar_one() == raw.driver_connection.get_server_pid()
    )


async def suit_pooler(engine: AsyncEngine) -> None:
    """Disable prepared statements if the engine leads through a pooler; call it first.

    A pooler may run the next transaction on another server connection, where a statement of this
    name is unknown or belongs to another client. It connects once to find out.
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
