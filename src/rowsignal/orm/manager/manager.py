"""`AsyncDatabaseManager`: an engine, its sessions, and their schema."""

import asyncio
import enum
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import cached_property, partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from sqlalchemy import URL, Connection, text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase

from rowsignal.exceptions import MissingExtraError
from rowsignal.orm.models.base import Base
from rowsignal.orm.models.queries import add_queries
from rowsignal.orm.urls import async_url

if TYPE_CHECKING:
    from alembic.config import Config

    from rowsignal.orm.manager.migrations import Migrations

T = TypeVar("T")

logger = logging.getLogger("rowsignal.orm.manager")

LOCK = "hashtextextended('rowsignal.migrations', 0)"
LOCK_DELAYS = (0.02, 0.05, 0.1, 0.2, 0.5)

# Alembic keeps its context in module globals: one env.py at a time in a process
environment = threading.Lock()


class DatabaseStatus(enum.Enum):
    """The state of a database's schema, compared with the migration scripts."""

    UP_TO_DATE = enum.auto()
    NO_INFO = enum.auto()
    """No revision is recorded: the schema is still to be created."""
    UPGRADE_AVAILABLE = enum.auto()


class SyncResult(enum.Enum):
    """The result of a sync."""

    ALREADY_UP_TO_DATE = enum.auto()
    CREATED = enum.auto()
    UPGRADED = enum.auto()


class AsyncDatabaseManager:
    """Creates, upgrades and drops a schema, and creates sessions.

    `uri` may name a sync driver (see `async_url`). `alembic_location` is the directory of
    `env.py`, which must use `config.attributes["connection"]` when it is given. The engine is
    created by exactly `create_async_engine(url=..., **engine_args)`. `base_model` is the
    declarative base whose tables are created and dropped; its models get the class methods of
    `QueryMixin` unless they have them.

    Methods that change the schema hold an advisory lock, so that any number of processes may call
    them at once: they take turns. The lock belongs to a server session (PostgreSQL manual, 13.3.5):
    migrate with a direct connection, not through a transaction pooler. Everything but `engine` and
    `Session` needs the extra `alembic`.
    """

    def __init__(
        self,
        uri: str | URL,
        alembic_location: str | Path,
        *,
        engine_args: Mapping[str, Any] | None = None,
        base_model: type[DeclarativeBase] | None = None,
    ) -> None:
        self._url = make_url(uri)
        self._location = Path(alembic_location)
        base_model = base_model or Base
        add_queries(base_model)
        self._metadata = base_model.metadata
        self.engine: AsyncEngine = create_async_engine(
            **{**(engine_args or {}), "url": async_url(self._url)}
        )
        self.Session: async_sessionmaker[AsyncSession] = async_sessionmaker(
            self.engine, expire_on_commit=False
        )

    def __repr__(self) -> str:
        # A query may contain a password.
        shown = self._url.set(query={}).render_as_string(hide_password=True)
        return f"{type(self).__name__}({shown!r}, {str(self._location)!r})"

    @property
    def alembic_cfg(self) -> "Config":
        """Alembic's configuration, for options that are not in `alembic.ini`."""
        return self._migrations.config

    def configured_connection(self, work: Callable[[Connection], T]) -> Callable[[Connection], T]:
        """Wrap a function so that Alembic's commands in it run on its connection argument.

        @manager.configured_connection
        def check(connection):
            command.check(manager.alembic_cfg)

        async with manager.engine.begin() as connection:
            await connection.run_sync(check)
        """

        @wraps(work)
        def configured(connection: Connection) -> T:
            return self._migrations.run_on(connection, partial(work, connection))

        return configured

    async def get_current_revision(self, session: AsyncSession | None = None) -> str | None:
        """Return the revision of the database, or None.

        Several revisions are joined by commas. If the database cannot be reached or read, the error
        is raised; None means only that there is no revision.
        """
        async with self._connection(session) as connection:
            heads = await self._current(connection)
        return _joined(heads or frozenset())

    def get_latest_revision(self) -> str | None:
        """Return the newest revision among the scripts; several are joined by commas."""
        return _joined(self._migrations.latest())

    async def get_status(self) -> DatabaseStatus:
        """Compare the database's revision with the scripts.

        Raises errors of the database, and `MigrationError` for an unknown revision.
        """
        async with self.engine.connect() as connection:
            return await self._status(connection)

    async def create(self) -> None:
        """Create the tables from the models and record the latest revision.

        The scripts do not run: rows, functions and triggers that only scripts create are missing
        afterwards (`sync(create="migrations")` runs them). Raises `MigrationError` if some of the
        tables exist already and the database is not at the latest revision.
        """
        async with self._migrating() as connection:
            await self._create(connection)

    async def upgrade(self, target: str = "head") -> None:
        """Run the migrations up to `target`."""
        async with self._migrating() as connection:
            await self._run(connection, partial(self._migrations.upgrade, target=target))

    async def downgrade(self, target: str = "-1") -> None:
        """Undo migrations down to `target`: a revision, a number of steps, or `base`."""
        async with self._migrating() as connection:
            await self._run(connection, partial(self._migrations.downgrade, target=target))

    async def stamp(self, target: str = "head") -> None:
        """Record `target` as the revision of the database, and change nothing else."""
        async with self._migrating() as connection:
            await self._run(connection, partial(self._migrations.stamp, target=target))

    async def drop(self) -> None:
        """Drop the existing tables of the models, and the version table."""
        async with self._migrating() as connection, connection.begin():
            await self._run(connection, partial(self._migrations.drop, metadata=self._metadata))

    async def sync(self, create: Literal["metadata", "migrations"] = "metadata") -> SyncResult:
        """Create the schema or upgrade it; do nothing if it is up to date.

        `create` says how an empty database is filled: from the models, which is fast but leaves out
        objects that only scripts create, or by running every migration. Of several processes at
        once one does the work, and the others find the database up to date.
        """
        if create not in {"metadata", "migrations"}:
            raise ValueError(f"create={create!r} must be 'metadata' or 'migrations'.")
        # Without the lock: processes that start at once need not take turns for nothing.
        if await self.get_status() is DatabaseStatus.UP_TO_DATE:
            return SyncResult.ALREADY_UP_TO_DATE
        async with self._migrating() as connection:
            return await self._sync(connection, create)

    async def dispose(self) -> None:
        """Close every pooled connection; the manager can be used again."""
        await self.engine.dispose()

    async def _sync(self, connection: AsyncConnection, create: str) -> SyncResult:
        # Asked again under the lock: another process may have done the work.
        status = await self._status(connection)
        await connection.rollback()
        if status is DatabaseStatus.UP_TO_DATE:
            return SyncResult.ALREADY_UP_TO_DATE
        if status is DatabaseStatus.NO_INFO and create == "metadata":
            await self._create(connection)
            return SyncResult.CREATED
        if status is DatabaseStatus.NO_INFO:
            await self._run(connection, partial(self._migrations.fill, metadata=self._metadata))
            return SyncResult.CREATED
        await self._run(connection, partial(self._migrations.upgrade, target="head"))
        return SyncResult.UPGRADED

    async def _create(self, connection: AsyncConnection) -> None:
        logger.info("creating tables from the models; migrations are recorded, not run")
        async with connection.begin():
            await self._run(connection, partial(self._migrations.create, metadata=self._metadata))

    async def _status(self, connection: AsyncConnection) -> DatabaseStatus:
        current = await self._current(connection)
        if current == self._migrations.latest():
            return DatabaseStatus.UP_TO_DATE
        return DatabaseStatus.UPGRADE_AVAILABLE if current else DatabaseStatus.NO_INFO

    async def _current(self, connection: AsyncConnection) -> frozenset[str] | None:
        if not self._migrations.is_prepared:
            await self._run(connection, self._migrations.prepare)
        return await connection.run_sync(self._migrations.current)

    async def _run(self, connection: AsyncConnection, work: Callable[[Connection], None]) -> None:
        while not environment.acquire(blocking=False):  # noqa: ASYNC110 -- no Event spans loops
            await asyncio.sleep(LOCK_DELAYS[0])
        try:
            await connection.run_sync(work)
        finally:
            environment.release()

    @asynccontextmanager
    async def _connection(self, session: AsyncSession | None) -> AsyncIterator[AsyncConnection]:
        if session is not None:
            yield await session.connection()
            return
        async with self.engine.connect() as connection:
            yield connection

    @asynccontextmanager
    async def _migrating(self) -> AsyncIterator[AsyncConnection]:
        """Yield a connection with the sole right to change the schema.

        It is in no transaction, since a migration with an `autocommit_block` needs that.
        """
        async with self.engine.connect() as connection:
            try:
                await _lock(connection)
                yield connection
                await _unlock(connection)
            except BaseException:
                # the end of the server session releases the lock in every state
                await connection.invalidate()
                raise

    @cached_property
    def _migrations(self) -> "Migrations":
        try:
            from rowsignal.orm.manager.migrations import Migrations  # noqa: PLC0415 -- an extra
        except ModuleNotFoundError as error:
            raise MissingExtraError(
                "Migrations need Alembic: pip install 'rowsignal[alembic]'."
            ) from error
        return Migrations.at(self._location, self._url.render_as_string(hide_password=False))


async def _lock(connection: AsyncConnection) -> None:
    """Take the lock by polling: a wait in the server would hold a snapshot.

    A held snapshot would block a `create index concurrently` of the running migration.
    """
    if connection.dialect.name != "postgresql":
        return
    delays = itertools.chain(LOCK_DELAYS, itertools.repeat(LOCK_DELAYS[-1]))
    while not await connection.scalar(text(f"select pg_try_advisory_lock({LOCK})")):
        await connection.rollback()
        await asyncio.sleep(next(delays))
    await connection.commit()


async def _unlock(connection: AsyncConnection) -> None:
    if connection.dialect.name == "postgresql":
        await connection.commit()
        await connection.execute(text(f"select pg_advisory_unlock({LOCK})"))
        await connection.commit()


def _joined(heads: frozenset[str]) -> str | None:
    return ",".join(sorted(heads)) or None
