# ruff: noqa: PT012 -- the block is what raises
"""All that a request or a context does is one transaction."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from rowsignal import (
    AsyncDatabaseManager,
    LockTimeoutError,
    create_db_context,
    create_db_dependency,
    create_middleware_and_session_proxy,
    get_transaction,
    lock_tables,
    make_db_session,
)
from support.entries import Base, Entry
from support.web_server import served

KINDS = ("dependency", "middleware", "middleware that commits")
CONTEXTS = ("context", "manager", "block", "block that commits")
FAILURES = ("second block", "exception", "http exception")
Contexts = Callable[[], AbstractAsyncContextManager[AsyncSession]]


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await engine.dispose()


async def entries(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(text("select id from entry order by id")))


async def locked_elsewhere(engine: AsyncEngine) -> bool:
    """Tell whether another connection holds a lock that keeps this one from the table."""
    async with async_sessionmaker(engine)() as session:
        with suppress(LockTimeoutError):
            async with lock_tables(session, [Entry], mode="access exclusive", timeout=0.05):
                return False
    return True


class Requests:
    """One application; `session` is the request's, whichever way it gets one."""

    def __init__(self, kind: str, engine: AsyncEngine) -> None:
        self.app = FastAPI()
        self.app.exception_handler(IntegrityError)(conflict)
        self.app.exception_handler(KeyError)(conflict)
        self.dependency: Any = create_db_dependency(async_sessionmaker(engine))
        if kind != "dependency":
            middleware, db = create_middleware_and_session_proxy()
            options = {"class_": AsyncSession}
            commits = kind == "middleware that commits"
            self.app.add_middleware(
                middleware, custom_engine=engine, session_args=options, commit_on_exit=commits
            )
            self.dependency = lambda: db.session

    def post(self, path: str) -> Callable[[Callable[[AsyncSession], Any]], None]:
        def add(work: Callable[[AsyncSession], Any]) -> None:
            @self.app.post(path)
            async def endpoint(session: Annotated[Any, Depends(self.dependency)]) -> Any:
                return await work(session)

        return add


async def conflict(request: Any, error: Exception) -> JSONResponse:
    return JSONResponse({}, 409)


async def write(session: AsyncSession, *numbers: int) -> None:
    async with get_transaction(session):
        session.add_all([Entry(id=number) for number in numbers])


@asynccontextmanager
async def of_another_library(session: AsyncSession) -> AsyncIterator[None]:
    """Do as helpers do that know nothing of rowsignal."""
    if session.in_transaction():
        async with session.begin_nested():
            yield
    else:
        async with session.begin():
            yield


async def write_by_another_library(session: AsyncSession, *numbers: int) -> None:
    async with of_another_library(session):
        session.add_all([Entry(id=number) for number in numbers])


async def write_under_lock(session: AsyncSession, *numbers: int) -> None:
    async with lock_tables(session, [Entry]):
        session.add_all([Entry(id=number) for number in numbers])


async def fail(session: AsyncSession, how: str) -> None:
    if how == "second block":
        await write(session, 2, 1)
    if how == "http exception":
        raise HTTPException(422)
    raise KeyError


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("first", [write, write_under_lock, write_by_another_library])
async def test_request_that_fails_leaves_nothing_of_its_blocks(
    pooled: AsyncEngine, engine: AsyncEngine, kind: str, how: str, first: Any
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> None:
        await first(session, 1)
        await fail(session, how)

    async with served(requests.app) as client:
        assert (await client.post("/")).status_code >= 400
    assert await entries(engine) == []


@pytest.mark.parametrize("kind", KINDS[1:])
async def test_returned_error_leaves_nothing_of_its_blocks(
    pooled: AsyncEngine, engine: AsyncEngine, kind: str
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> JSONResponse:
        await write(session, 1)
        return JSONResponse({}, 422)

    async with served(requests.app) as client:
        assert (await client.post("/")).status_code == 422
    assert await entries(engine) == []


@pytest.mark.parametrize("kind", KINDS)
async def test_request_that_succeeds_keeps_its_blocks_but_those_that_failed(
    pooled: AsyncEngine, engine: AsyncEngine, kind: str
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> None:
        await write(session, 1)
        with suppress(IntegrityError):
            await write(session, 2, 1)
        await write_under_lock(session, 3)
        await write_by_another_library(session, 4)

    async with served(requests.app) as client:
        assert (await client.post("/")).status_code == 200
    assert await entries(engine) == [1, 3, 4]


@pytest.mark.parametrize("kind", KINDS)
async def test_lock_taken_first_lasts_to_the_end_of_the_request(
    pooled: AsyncEngine, engine: AsyncEngine, kind: str
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> bool:
        await write_under_lock(session, 1)
        return await locked_elsewhere(engine)

    async with served(requests.app) as client:
        assert (await client.post("/")).json() is True
        assert not await locked_elsewhere(engine)


@pytest.mark.parametrize("kind", KINDS)
async def test_block_without_a_statement_takes_no_connection(
    pooled: AsyncEngine, kind: str
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> None:
        await write(session)

    async with pooled.connect(), served(requests.app) as client:
        assert (await client.post("/")).status_code == 200


@pytest.mark.parametrize("kind", KINDS)
async def test_begin_of_the_programs_own_works_in_a_request(
    pooled: AsyncEngine, engine: AsyncEngine, kind: str
) -> None:
    requests = Requests(kind, pooled)

    @requests.post("/")
    async def work(session: AsyncSession) -> None:
        async with session.begin():
            await write(session, 1)
            with suppress(IntegrityError):
                await write(session, 1)
        await write(session, 2)

    async with served(requests.app) as client:
        assert (await client.post("/")).status_code == 200
    assert await entries(engine) == [1, 2]


@pytest.fixture(params=CONTEXTS)
def contexts(request: pytest.FixtureRequest, pooled: AsyncEngine, tmp_path: Any) -> Contexts:
    if request.param == "context":
        return create_db_context(async_sessionmaker(pooled))
    if request.param == "manager":
        manager = AsyncDatabaseManager("postgresql://unused", tmp_path)
        manager.Session = async_sessionmaker(pooled)
        return lambda: make_db_session(manager)
    _, db = create_middleware_and_session_proxy()
    db.init(custom_engine=pooled, session_args={"class_": AsyncSession})
    return lambda: Block(db, commits=request.param == "block that commits")


class Block:
    """`async with db()` that gives its session."""

    def __init__(self, db: Any, *, commits: bool) -> None:
        self.db = db
        self.block = db(commit_on_exit=commits)

    async def __aenter__(self) -> AsyncSession:
        await self.block.__aenter__()
        session: AsyncSession = self.db.session
        return session

    async def __aexit__(self, *error: object) -> None:
        await self.block.__aexit__(*error)


@pytest.mark.parametrize("first", [write, write_under_lock, write_by_another_library])
@pytest.mark.parametrize("how", FAILURES)
async def test_context_that_fails_leaves_nothing_of_its_blocks(
    contexts: Contexts, engine: AsyncEngine, first: Any, how: str
) -> None:
    with pytest.raises((KeyError, IntegrityError, HTTPException)):
        async with contexts() as session:
            await first(session, 1)
            await fail(session, how)
    assert await entries(engine) == []


async def test_context_that_succeeds_keeps_its_blocks(
    contexts: Contexts, engine: AsyncEngine
) -> None:
    async with contexts() as session:
        await write_under_lock(session, 1)
        assert await locked_elsewhere(engine)
        with suppress(IntegrityError):
            await write(session, 2, 1)
        await write(session, 3)
        assert await entries(engine) == []
    assert await entries(engine) == [1, 3]
    assert not await locked_elsewhere(engine)


async def test_context_that_commits_midway_goes_on_with_the_next_whole(
    contexts: Contexts, engine: AsyncEngine
) -> None:
    with pytest.raises(KeyError):
        async with contexts() as session:
            await write(session, 1)
            await session.commit()
            await write(session, 2)
            await write(session, 3)
            raise KeyError
    assert await entries(engine) == [1]


async def test_session_of_the_programs_own_commits_with_its_first_block(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    async with async_sessionmaker(pooled)() as session:
        await write(session, 1)
        with pytest.raises(DBAPIError):
            await write(session, 1)
    assert await entries(engine) == [1]
