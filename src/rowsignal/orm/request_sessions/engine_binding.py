"""The binding of a proxy: an engine, its owner, and its session factory."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from rowsignal.exceptions import SessionNotInitialisedError
from rowsignal.orm.request_sessions.pools import capacity_of, pool_status
from rowsignal.orm.urls import async_url


def default_session_class() -> type[AsyncSession]:
    """Return SQLModel's session class if SQLModel is installed, else SQLAlchemy's."""
    if find_spec("sqlmodel") is None:
        return AsyncSession
    session_class: type[AsyncSession] = import_module("sqlmodel.ext.asyncio.session").AsyncSession
    return session_class


@dataclass(frozen=True)
class EngineSource:
    """The origin of an engine: a URL to create it from, or an engine of the application."""

    db_url: str | URL | None = None
    custom_engine: AsyncEngine | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    session_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.db_url is None) == (self.custom_engine is None):
            raise ValueError("Pass either db_url or custom_engine: it takes exactly one of them.")

    def is_same_engine(self, other: "EngineSource") -> bool:
        """Tell whether both describe the same engine, so that two applications can share it."""
        if self.db_url is None or other.db_url is None:
            return self.custom_engine is other.custom_engine
        same_url = make_url(self.db_url) == make_url(other.db_url)
        return same_url and self.engine_args == other.engine_args

    def make_engine(self) -> AsyncEngine:
        """Return the given engine, or create one from the URL."""
        if self.custom_engine is not None:
            return self.custom_engine
        return create_async_engine(async_url(self.db_url or ""), **self.engine_args)

    def make_sessionmaker(self, engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
        """Return the session factory; `session_args` override the defaults."""
        session_args = {"class_": default_session_class(), "expire_on_commit": False}
        return async_sessionmaker(engine, **{**session_args, **self.session_args})


class EngineBinding:
    """An engine in use by a proxy; the proxy owns it if it was created from a URL.

    `lifespans` counts the running applications; the last one to shut down disposes of the engine.
    `warns_when_full` is set once the warning for a full pool is registered.
    """

    def __init__(self, source: EngineSource) -> None:
        self.source = source
        self.engine = source.make_engine()
        self.is_owned = source.custom_engine is None
        self.sessionmaker = source.make_sessionmaker(self.engine)
        self.lifespans = 0
        self.is_disposed = False
        self.is_given_up = False
        self.warns_when_full = False
        self._pool = self.engine.pool
        self._loop = _running_loop()

    @property
    def is_live(self) -> bool:
        """Tell whether sessions may still be open on the engine, so that it must not be replaced.

        Disposal replaces the engine's pool, which shows for engines of the application as well.
        """
        return not self.is_disposed and self.engine.pool is self._pool

    def require_live(self) -> "EngineBinding":
        """Return this binding; raise `SessionNotInitialisedError` if the program disposed of it.

        The shutdown of an application does not count: the next one starts with a new engine.
        """
        if self.is_given_up or not (self.is_owned or self.is_live):
            raise SessionNotInitialisedError(
                "The engine of this db was disposed. Give the middleware a db_url or a "
                "custom_engine, or call `db.init(...)` again first."
            )
        return self

    def share(self, source: EngineSource) -> None:
        """Share the engine with one more application; its `session_args` apply from now on."""
        self.sessionmaker = source.make_sessionmaker(self.engine)
        if self.is_owned and self._loop is not None and self._loop.is_closed():
            # Connections of a closed event loop can neither be used nor closed properly.
            self.engine.sync_engine.dispose(close=False)
            self._pool = self.engine.pool
        self._loop = _running_loop()

    async def give_up(self) -> None:
        """Dispose at the program's request; applications cannot use the binding any more."""
        self.is_given_up = True
        await self.dispose()

    async def dispose(self) -> None:
        """Close the pool of an owned engine; idempotent."""
        if self.is_owned and not self.is_disposed:
            await self.engine.dispose()
        self.is_disposed = True

    @property
    def capacity(self) -> int | None:
        """The largest number of connections of the pool; None without a limit."""
        return capacity_of(self.engine.pool)

    def pool_status(self) -> dict[str, Any]:
        """Return the pool's numbers; None for numbers that its class does not have."""
        return pool_status(self.engine.pool)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
