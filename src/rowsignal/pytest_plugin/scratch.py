"""Databases of one process of a test run, and the removal of those of killed processes."""

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import NullPool, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from rowsignal.identifiers import quote

PREFIX = "rowsignal_test_"
# First half of the keys of the advisory locks by which living processes keep their databases;
# it must differ from the one by which listeners arm triggers.
LEASES = 0x72747374

TAKE_LEASE = text("select pg_advisory_lock(:leases, :process)")
# An advisory lock belongs to one database; pg_locks shows the locks of all databases.
FIND_ORPHANS = text(
    "with found as ("
    " select datname, ('x' || substr(datname, length(:prefix) + 1, 8))::bit(32)::int as process"
    " from pg_database where datname ~ ('^' || :prefix || '[0-9a-f]{8}_'))"
    " select datname from found where not exists ("
    " select from pg_locks where locktype = 'advisory' and objsubid = 2 and granted"
    " and classid = :leases and objid = process)"
)

A = TypeVar("A")
T = TypeVar("T")


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return in_thread(asyncio.run, coroutine)


def in_thread(function: Callable[[A], T], argument: A) -> T:
    """Call a function in a thread without a running event loop, which a fixture may have."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(function, argument).result()


class ScratchDatabases:
    """Creates databases under unique names, and drops them at the end.

    The process holds an advisory lock while it lives. The next process to start drops the databases
    of processes without a lock. So two runs on one server leave each other's databases alone, and
    the databases of a killed run are dropped by the next run.
    """

    def __init__(self, server_url: str) -> None:
        self.server_url = make_url(server_url)
        self._process = secrets.randbelow(2**31)
        self._numbers = itertools.count()
        self._names: set[str] = set()
        # A factory, so that the current event loop is not replaced.
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._engine = create_async_engine(
            self.server_url, isolation_level="AUTOCOMMIT", poolclass=NullPool
        )
        self._connection: AsyncConnection | None = None

    def create(self, template: str | None = None) -> str:
        """Create a database, a copy of `template` if given; return its URL."""
        name = f"{PREFIX}{self._process:08x}_{next(self._numbers)}"
        source = "" if template is None else f" template {quote(make_url(template).database or '')}"
        self._names.add(name)
        self._run(self._create(f"create database {quote(name)}{source}"))
        return self.server_url.set(database=name).render_as_string(hide_password=False)

    def drop(self, url: str) -> None:
        """Drop a database by its URL, and end its open connections."""
        name = make_url(url).database or ""
        self._run(self._execute(f"drop database if exists {quote(name)} with (force)"))
        self._names.discard(name)

    def drop_orphans(self) -> None:
        """Drop the databases of processes that have ended without dropping them."""
        self._run(self._open())

    def close(self) -> None:
        """Drop the remaining databases."""
        try:
            self._run(self._close())
        finally:
            in_thread(asyncio.Runner.close, self._runner)

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return in_thread(self._runner.run, coroutine)

    async def _open(self) -> None:
        _ = await self._lease()

    async def _create(self, statement: str) -> None:
        connection = await self._lease()
        major, *_ = connection.dialect.server_version_info or (0,)
        # Copying files is the quicker way for small databases, and the only one before 15.
        await self._execute(statement + (" strategy file_copy" if int(major) >= 15 else ""))

    async def _execute(self, statement: str) -> None:
        connection = await self._lease()
        try:
            await connection.exec_driver_sql(statement)
        except DBAPIError as error:
            if not error.connection_invalidated:
                raise
            # Tests may restart the server, and the lock is gone with the connection.
            self._connection = None
            await connection.close()
            connection = await self._lease()
            await connection.exec_driver_sql(statement)

    async def _lease(self) -> AsyncConnection:
        if self._connection is None:
            connection = await self._engine.connect()
            await connection.execute(TAKE_LEASE, {"leases": LEASES, "process": self._process})
            self._connection = connection
            await self._drop_orphans(connection)
        return self._connection

    async def _drop_orphans(self, connection: AsyncConnection) -> None:
        found = await connection.execute(FIND_ORPHANS, {"prefix": PREFIX, "leases": LEASES})
        for name in found.scalars().all():
            # Another process may be dropping it at this moment.
            with contextlib.suppress(DBAPIError):
                await connection.exec_driver_sql(
                    f"drop database if exists {quote(name)} with (force)"
                )

    async def _close(self) -> None:
        for name in sorted(self._names):
            await self._execute(f"drop database if exists {quote(name)} with (force)")
        if self._connection is not None:
            await self._connection.close()
        await self._engine.dispose()
