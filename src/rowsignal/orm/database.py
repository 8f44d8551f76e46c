"""`Database`: an engine, its sessions, and a FastAPI dependency for them."""

import inspect
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from sqlalchemy import FromClause
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from rowsignal.orm.locks.durations import Duration
from rowsignal.orm.locks.tables import LockMode, lock_tables
from rowsignal.orm.sessions.dependency import SessionDependency, open_session
from rowsignal.orm.sessions.transactions import get_transaction
from rowsignal.orm.urls import async_url, revealed

TAKES_OPTIONS = "execution_options" in inspect.signature(Session).parameters


class Database(SessionDependency[AsyncSession]):
    """One database: its engine, its sessions, and the FastAPI dependency for them.

        db = Database("postgresql://localhost/shop", pool_size=5)
        app = FastAPI(lifespan=db.lifespan)

        @app.post("/orders")
        async def create(session: Annotated[AsyncSession, Depends(db)]) -> None: ...

    The object itself is the dependency that `create_db_dependency` makes: one transaction per
    request, committed before the response is sent.

    - `url` (text, SQLAlchemy's `URL`, pydantic's `PostgresDsn` or `SecretStr`, also of a sync
      driver, see `async_url`): the engine is made from it with `connect_args` and
      `engine_options`, and disposed at the end of `lifespan`. `engine` is an existing engine, which
      is never disposed.
    - `session_class`, `expire_on_commit`, `autoflush`: of the sessions.
    - `session_execution_options`: for every statement of a session, such as
      `{"schema_translate_map": {None: "tenant"}}`.

    Raises `TypeError` unless exactly one of `url` and `engine` is given, and for engine options
    beside `engine`.
    """

    def __init__(
        self,
        url: Any = None,
        *,
        engine: AsyncEngine | None = None,
        session_class: type[AsyncSession] = AsyncSession,
        expire_on_commit: bool = False,
        autoflush: bool = True,
        session_execution_options: Mapping[str, Any] | None = None,
        connect_args: Mapping[str, Any] | None = None,
        **engine_options: Any,
    ) -> None:
        if connect_args is not None:
            engine_options["connect_args"] = dict(connect_args)
        self.is_owner = engine is None
        self.engine = _engine(url, engine, engine_options)
        super().__init__(
            _session_maker(
                self.engine,
                session_execution_options,
                class_=session_class,
                expire_on_commit=expire_on_commit,
                autoflush=autoflush,
            )
        )

    def session(self) -> AbstractAsyncContextManager[AsyncSession]:
        """Open a session for a block, as `create_db_context` does: one transaction."""
        return open_session(self.session_maker)

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncSession]:
        """Open a session for a block, in a transaction from the start."""
        async with self.session() as session, get_transaction(session):
            yield session

    def lock_tables(
        self,
        tables: Iterable[type[Any] | FromClause],
        *,
        session: AsyncSession | None = None,
        mode: LockMode | str = LockMode.SHARE_UPDATE_EXCLUSIVE,
        timeout: Duration | None = "5s",
    ) -> AbstractAsyncContextManager[AsyncSession]:
        """Lock tables, as `lock_tables` does, in the transaction of `session` or in a new one.

        A new transaction needs a second connection; the block must then not write to the locked
        tables through the request's session.
        """
        owner = self.session_maker if session is None else session
        return lock_tables(owner, tables, mode=mode, timeout=timeout)

    @asynccontextmanager
    async def lifespan(self, _app: object = None) -> AsyncIterator[None]:
        """Dispose of the engine when the application ends: `FastAPI(lifespan=db.lifespan)`."""
        try:
            yield
        finally:
            await self.dispose()

    def install(self, app: Any) -> None:
        """Wrap the existing lifespan of an application in `lifespan`."""
        inner = app.router.lifespan_context

        @asynccontextmanager
        async def composed(running: Any) -> AsyncIterator[Any]:
            # The application's own lifespan ends first: it may still use the engine.
            async with self.lifespan(running), inner(running) as state:
                yield state

        app.router.lifespan_context = composed

    async def dispose(self) -> None:
        """Close the pool, unless the engine was given by the application; idempotent."""
        if self.is_owner:
            await self.engine.dispose()


def _engine(url: Any, engine: AsyncEngine | None, options: Mapping[str, Any]) -> AsyncEngine:
    if (url is None) == (engine is None):
        raise TypeError("Database needs either a url or an engine: it takes exactly one of them.")
    if engine is None:
        return create_async_engine(async_url(revealed(url)), **options)
    if options:
        raise TypeError(
            f"{', '.join(options)} cannot be given beside engine=: pass them to the engine that "
            "you make, or pass a url instead."
        )
    return engine


def _session_maker(
    engine: AsyncEngine, options: Mapping[str, Any] | None, **arguments: Any
) -> async_sessionmaker[AsyncSession]:
    if not options:
        return async_sessionmaker(engine, **arguments)
    if TAKES_OPTIONS:
        return async_sessionmaker(engine, execution_options=dict(options), **arguments)
    # Sessions of SQLAlchemy 2.0 have no execution options, only their engine has
    return async_sessionmaker(engine.execution_options(**options), **arguments)
