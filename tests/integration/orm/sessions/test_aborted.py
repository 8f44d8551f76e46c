# ruff: noqa: PT012 -- the block is what raises
"""A failed statement whose error was caught never passes for a commit."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session

from rowsignal import (
    AbortedTransactionError,
    AsyncDatabaseManager,
    create_db_context,
    create_db_dependency,
    create_middleware_and_session_proxy,
    get_transaction,
    make_db_session,
)
from support.entries import Base, Entry
from support.web_server import served

DRIVERS = ("asyncpg", "psycopg_async")
Failing = Callable[[AsyncSession], Awaitable[None]]


@pytest.fixture(params=DRIVERS)
async def own(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[AsyncEngine]:
    url = make_url(database_url).set(drivername=f"postgresql+{request.param}")
    engine = create_async_engine(url, pool_size=1, max_overflow=0)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await engine.dispose()


def bound(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine)


def bound_by_model(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(binds={Entry: engine})


def routed(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    class Routing(Session):
        def get_bind(self, *args: Any, **kwargs: Any) -> Any:
            return engine.sync_engine

    return async_sessionmaker(sync_session_class=Routing)


async def by_statement(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await (await _connection(session)).execute(text("select 1 / 0"))


async def by_driver(session: AsyncSession) -> None:
    raw = await (await _connection(session)).get_raw_connection()
    assert raw.driver_connection is not None
    with suppress(Exception):
        await raw.driver_connection.execute("select 1 / 0")


async def by_cursor(session: AsyncSession) -> None:
    def run(connection: Any) -> None:
        with suppress(Exception):
            connection.connection.cursor().execute("select 1 / 0")

    await (await _connection(session)).run_sync(run)


async def by_flush(session: AsyncSession) -> None:
    with suppress(DBAPIError):
        await session.execute(text("insert into entry values (1)"), bind_arguments=ENTRY)


ENTRY = {"mapper": Entry}


async def _connection(session: AsyncSession) -> Any:
    return await session.connection(bind_arguments=ENTRY)


async def spoil(session: AsyncSession, fail: Failing) -> None:
    await session.execute(text("insert into entry values (1)"), bind_arguments=ENTRY)
    await fail(session)


MAKERS = (bound, bound_by_model, routed)
FAILURES = (by_statement, by_driver, by_cursor, by_flush)
PAIRS = list(zip(MAKERS, FAILURES, strict=False))


@asynccontextmanager
async def transaction(maker: Any) -> AsyncIterator[AsyncSession]:
    async with maker() as session, get_transaction(session):
        yield session


@asynccontextmanager
async def block(maker: Any) -> AsyncIterator[AsyncSession]:
    _, db = create_middleware_and_session_proxy()
    db.init(custom_engine=create_async_engine("postgresql+asyncpg://unused"))
    db.binding.sessionmaker = maker  # type: ignore[union-attr]
    async with db(commit_on_exit=True):
        yield db.session


@asynccontextmanager
async def several(maker: Any) -> AsyncIterator[AsyncSession]:
    _, db = create_middleware_and_session_proxy()
    db.init(custom_engine=create_async_engine("postgresql+asyncpg://unused"))
    db.binding.sessionmaker = maker  # type: ignore[union-attr]
    async with db(commit_on_exit=True, multi_sessions=True, all_or_nothing=True):
        yield db.session


@asynccontextmanager
async def managed(maker: Any) -> AsyncIterator[AsyncSession]:
    manager = AsyncDatabaseManager("postgresql://unused", "unused")
    manager.Session = maker
    async with make_db_session(manager) as session:
        yield session


@asynccontextmanager
async def context(maker: Any) -> AsyncIterator[AsyncSession]:
    async with create_db_context(maker)() as session:
        yield session


@pytest.mark.parametrize(
    ("make", "fail", "begin"),
    [
        *((make, fail, context) for make in MAKERS for fail in FAILURES),
        *((routed, by_cursor, begin) for begin in (transaction, block, several, managed)),
    ],
)
async def test_block_that_caught_the_error_does_not_pass_for_a_commit(
    own: AsyncEngine, engine: AsyncEngine, make: Any, fail: Failing, begin: Any
) -> None:
    with pytest.raises(AbortedTransactionError, match="Nothing was committed"):
        async with begin(make(own)) as session:
            await spoil(session, fail)
    async with begin(make(own)) as session:
        assert not (
            await session.execute(text("select id from entry"), None, bind_arguments=ENTRY)
        ).all()


@pytest.mark.parametrize(("make", "fail"), PAIRS)
@pytest.mark.parametrize("is_middleware", [True, False])
async def test_request_that_caught_the_error_is_no_2xx(
    own: AsyncEngine, make: Any, fail: Failing, is_middleware: bool
) -> None:
    app = FastAPI()
    dependency: Any = create_db_dependency(make(own))
    if is_middleware:
        middleware, db = create_middleware_and_session_proxy()
        db.init(custom_engine=own)
        app.add_middleware(middleware, commit_on_exit=True)
        dependency = lambda: db.session  # noqa: E731 -- one of two

    @app.post("/")
    async def endpoint(session: Annotated[Any, Depends(dependency)]) -> None:
        await spoil(session, fail)

    @app.exception_handler(AbortedTransactionError)
    async def aborted(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({}, 503)

    async with served(app) as client:
        if is_middleware:
            db.binding.sessionmaker = make(own)  # type: ignore[union-attr]
        assert (await client.post("/")).status_code == 503
        assert own.pool.checkedout() == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(("make", "fail"), PAIRS)
async def test_commit_of_the_programs_own_tells_as_well(
    own: AsyncEngine, make: Any, fail: Failing
) -> None:
    async with context(make(own)) as session:
        await spoil(session, fail)
        with pytest.raises(AbortedTransactionError):
            await session.commit()
        await session.rollback()
        await spoil(session, by_nothing)
        await session.commit()


async def by_nothing(session: AsyncSession) -> None:
    pass


async def test_session_outside_of_requests_and_contexts_is_left_alone(own: AsyncEngine) -> None:
    async with bound(own)() as session:
        await spoil(session, by_statement)
        await session.commit()


@pytest.mark.parametrize("make", MAKERS)
async def test_failure_undone_by_its_savepoint_commits(
    own: AsyncEngine, engine: AsyncEngine, make: Any
) -> None:
    async with context(make(own)) as session:
        await session.execute(text("insert into entry values (1)"), bind_arguments=ENTRY)
        with suppress(DBAPIError):
            async with get_transaction(session):
                await session.execute(text("select 1 / 0"), bind_arguments=ENTRY)
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from entry")) == 1


async def test_hook_after_the_commit_does_not_run_when_there_was_none(own: AsyncEngine) -> None:
    from sqlalchemy import event

    committed: list[object] = []
    with pytest.raises(AbortedTransactionError):
        async with context(bound(own)) as session:
            event.listen(session.sync_session, "after_commit", committed.append)
            await spoil(session, by_statement)
    assert committed == []
