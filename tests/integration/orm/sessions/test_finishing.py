# ruff: noqa: PT012 -- the block is what raises
"""Sessions end by their class's own methods, and return their connection whatever these do."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from rowsignal import create_db_context, create_db_dependency, create_middleware_and_session_proxy
from rowsignal.orm import SessionProxy
from support.web_server import served

calls: list[str] = []


class Recording(AsyncSession):
    """A session class that does something of its own when it ends."""

    async def rollback(self) -> None:
        await super().rollback()
        calls.append("rollback")

    async def close(self) -> None:
        calls.append("close")
        await super().close()


class Cleaning(Recording):
    async def close(self) -> None:
        await self.execute(text("select 1"))
        await super().close()


class Reading(Recording):
    """Reads again after its commit, and leaves the transaction of that open."""

    async def commit(self) -> None:
        await super().commit()
        await self.execute(text("select 1"))


class Forgetful(Recording):
    async def close(self) -> None:
        calls.append("close")


class Failing(Recording):
    async def close(self) -> None:
        calls.append("close")
        raise OSError("cannot close")


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=2, max_overflow=0)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def proxy_of(engine: AsyncEngine, session_class: type[AsyncSession]) -> SessionProxy:
    _, db = create_middleware_and_session_proxy()
    db.init(custom_engine=engine, session_args={"class_": session_class})
    return db


@asynccontextmanager
async def block(
    engine: AsyncEngine, session_class: type[AsyncSession], **options: Any
) -> AsyncIterator[AsyncSession]:
    db = proxy_of(engine, session_class)
    async with db(commit_on_exit=True, **options):
        yield db.session


@asynccontextmanager
async def several(
    engine: AsyncEngine, session_class: type[AsyncSession]
) -> AsyncIterator[AsyncSession]:
    async with block(engine, session_class, multi_sessions=True) as session:
        yield session


def context(
    engine: AsyncEngine, session_class: type[AsyncSession]
) -> AbstractAsyncContextManager[AsyncSession]:
    return create_db_context(async_sessionmaker(engine, class_=session_class))()


Open = Callable[[AsyncEngine, type[AsyncSession]], AbstractAsyncContextManager[AsyncSession]]
every = pytest.mark.parametrize("begin", [block, several, context])


@every
@pytest.mark.parametrize("session_class", [Recording, Cleaning, Forgetful, Reading])
async def test_session_that_commits_is_closed_by_its_class(
    pooled: AsyncEngine, begin: Open, session_class: type[AsyncSession]
) -> None:
    async with begin(pooled, session_class) as session:
        await session.execute(text("select 1"))
    assert calls == ["close"]


@every
@pytest.mark.parametrize("session_class", [Recording, Cleaning, Forgetful])
async def test_session_that_fails_is_rolled_back_and_closed_by_its_class(
    pooled: AsyncEngine, begin: Open, session_class: type[AsyncSession]
) -> None:
    with pytest.raises(LookupError):
        async with begin(pooled, session_class) as session:
            await session.execute(text("select 1"))
            raise LookupError
    assert calls == ["rollback", "close"]


@every
async def test_class_that_reads_after_its_commit_returns_its_connection(
    pooled: AsyncEngine, begin: Open
) -> None:
    class Plain(AsyncSession):
        async def commit(self) -> None:
            await super().commit()
            await self.execute(text("select 1"))

    async with begin(pooled, Plain) as session:
        await session.execute(text("select 1"))


@every
async def test_session_that_was_not_used_is_closed_by_its_class(
    pooled: AsyncEngine, begin: Open
) -> None:
    async with begin(pooled, Recording):
        pass
    assert calls == ["close"]


@every
async def test_class_that_cannot_close_is_told_and_returns_its_connection(
    pooled: AsyncEngine, begin: Open
) -> None:
    with pytest.raises(OSError, match="cannot close"):
        async with begin(pooled, Failing) as session:
            await session.execute(text("select 1"))
    assert calls == ["close"]


@pytest.mark.parametrize("is_middleware", [True, False])
async def test_session_of_a_request_ends_by_its_class(
    pooled: AsyncEngine, is_middleware: bool
) -> None:
    app = FastAPI()
    dependency: Any = create_db_dependency(async_sessionmaker(pooled, class_=Recording))
    if is_middleware:
        middleware, db = create_middleware_and_session_proxy()
        arguments = {"class_": Recording}
        app.add_middleware(
            middleware, custom_engine=pooled, commit_on_exit=True, session_args=arguments
        )
        dependency = lambda: db.session  # noqa: E731 -- one of two

    @app.get("/{how}")
    async def endpoint(how: str, session: Any = Depends(dependency)) -> None:  # noqa: B008
        await session.execute(text("select 1"))
        if how == "fails":
            raise LookupError

    async with served(app) as client:
        assert (await client.get("/works")).status_code == 200
        assert calls == ["close"]
        assert (await client.get("/fails")).status_code == 500
    assert calls == ["close", "rollback", "close"]
