"""What a proxy works on: an engine, its owner, and the sessions made from it."""

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
    """Return SQLModel's session class where SQLModel is installed, else SQLAlchemy's."""
    if find_spec("sqlmodel") is None:
        return AsyncSession
    session_class: type[AsyncSession] = import_module("sqlmodel.ext.asyncio.session").AsyncSession
    return session_class


@dataclass(frozen=True)
class EngineSource:
    """Where an engine comes from: a URL to make it of, or an engine that the application owns."""

    db_url: str | URL | None = None
    custom_engine: AsyncEngine | None = None
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    session_args: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.db_url is None) == (self.custom_engine is None):
            raise ValueError("Pass either db_url or custom_engine: it takes exactly one of them.")

    def is_same_engine(self, other: "EngineSource") -> bool:
        """Tell whether both mean one engine, so that a second application shares the first's."""
        if self.db_url is None or other.db_url is None:
            return self.custom_engine is other.custom_engine
        same_url = make_url(self.db_url) == make_url(other.db_url)
        return same_url and self.engine_args == other.engine_args

    def make_engine(self) -> AsyncEngine:
        """Return the engine, made from the URL unless it was given."""
        if self.custom_engine is not None:
            return self.custom_engine
        return create_async_engine(async_url(self.db_url or ""), **self.engine_args)

    def make_sessionmaker(self, engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
        """Return the factory of sessions, with `session_args` over our defaults."""
        session_args = {"class_": default_session_class(), "expire_on_commit": False}
        return async_sessionmaker(engine, **{**session_args, **self.session_args})


class EngineBinding:
    """An engine in use by a proxy; owned when it was made from a URL, else borrowed.

    `lifespans` counts the applications that are up; the last one to go down disposes.
    `warns_when_full` is set once a warning for a full pool listens.
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
        """Whether sessions may still be open on the engine, so that no other may take its place.

        A disposed engine has replaced its pool, which also tells of engines of the application.
        """
        return not self.is_disposed and self.engine.pool is self._pool

    def require_live(self) -> "EngineBinding":
        """Return this binding; `SessionNotInitialisedError` when the program has disposed of it.

        The end of an application is no such thing: the next one starts with a new engine.
        """
        if self.is_given_up or not (self.is_owned or self.is_live):
            raise SessionNotInitialisedError(
                "The engine of this db was disposed. Give the middleware a db_url or a "
                "custom_engine, or call `db.init(...)` again first."
            )
        return self

    def share(self, source: EngineSource) -> None:
        """Serve one more application from the same engine; its `session_args` hold from now on."""
        self.sessionmaker = source.make_sessionmaker(self.engine)
        if self.is_owned and self._loop is not None and self._loop.is_closed():
            # Connections of a closed event loop can neither be used nor closed properly.
            self.engine.sync_engine.dispose(close=False)
            self._pool = self.engine.pool
        self._loop = _running_loop()

    async def give_up(self) -> None:
        """Dispose for the program, which asked for it; an application may not use it again."""
        self.is_given_up = True
        await self.dispose()

    async def dispose(self) -> None:
        """Close the pool of an owned engine; once done, calling it again does nothing."""
        if self.is_owned and not self.is_disposed:
            await self.engine.dispose()
        self.is_disposed = True

    @property
    def capacity(self) -> int | None:
        """Connections that the pool lends at most; None where it has no such bound."""
        return capacity_of(self.engine.pool)

    def pool_status(self) -> dict[str, Any]:
        """Return the pool's numbers; None for those that its class does not keep."""
        return pool_status(self.engine.pool)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
