"""Where requests, dependencies, streams and other middleware meet the session."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import Depends
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from rowsignal import MissingSessionError, create_db_context, create_db_dependency
from support.session_apps import Ledger, create_tables, entries, is_free
from support.web_server import served

ORIGIN = {"Origin": "https://shop.example"}


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=2, max_overflow=0)
    await create_tables(engine)
    yield engine
    assert is_free(engine)
    await engine.dispose()


@pytest.mark.parametrize(("ending", "status"), [("works", 200), ("deferred", 409)])
@pytest.mark.parametrize("commit_on_exit", [True, False])
async def test_block_around_a_dependency_commits_before_the_response(
    pooled: AsyncEngine, engine: AsyncEngine, commit_on_exit: bool, ending: str, status: int
) -> None:
    ledger = Ledger(pooled, engine, commit_on_exit=commit_on_exit)

    async def session() -> AsyncIterator[AsyncSession]:
        async with ledger.db(commit_on_exit=True):
            yield ledger.db.session

    @ledger.app.post("/block")
    async def write(session: Any = Depends(session)) -> None:  # noqa: B008 -- as such programs do
        parent = 1 if ending == "deferred" else None
        statement = text("insert into entry values (1, :parent)")
        await session.execute(statement, {"parent": parent})

    async with served(ledger.app) as client:
        assert (await client.post("/block")).status_code == status
    assert await entries(engine) == ([1] if status == 200 else [])


async def test_block_around_a_dependency_goes_by_its_exception(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine)

    async def session() -> AsyncIterator[AsyncSession]:
        async with ledger.db(commit_on_exit=True):
            yield ledger.db.session
            await ledger.db.session.execute(text("insert into entry values (2)"))

    @ledger.app.post("/block/{how}")
    async def write(how: str, session: Any = Depends(session)) -> None:  # noqa: B008 -- as above
        await session.execute(text("insert into entry values (1)"))
        if how == "fails":
            raise LookupError

    async with served(ledger.app) as client:
        assert (await client.post("/block/fails")).status_code == 500
        assert await entries(engine) == []
        assert (await client.post("/block/works")).status_code == 200
    assert await entries(engine) == [1, 2]


async def test_cors_outside_of_the_middleware_covers_a_failed_commit(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine)
    ledger.app.add_middleware(CORSMiddleware, allow_origins=list(ORIGIN.values()))
    async with served(ledger.app) as client:
        answer = await client.get("/plain/deferred", headers=ORIGIN)
    assert answer.status_code == 409
    assert answer.headers["access-control-allow-origin"] == ORIGIN["Origin"]


async def test_endpoint_that_yields_opens_its_own_session(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine)
    maker = async_sessionmaker(pooled)
    open_session, get_db = create_db_context(maker), create_db_dependency(maker)

    @ledger.app.get("/own")
    async def own() -> AsyncIterator[int]:
        async with open_session() as session:
            for number in await session.scalars(text("select generate_series(1, 3)")):
                yield number

    @ledger.app.get("/request")
    async def of_request(session: Any = Depends(get_db)) -> AsyncIterator[int]:  # noqa: B008
        with pytest.raises(MissingSessionError, match="create_db_context"):
            await session.scalar(text("select 1"))
        yield 0

    async with served(ledger.app) as client:
        assert (await client.get("/own")).text.split() == ["1", "2", "3"]
        assert (await client.get("/request")).text.split() == ["0"]


async def test_handlers_answer_with_fitting_statuses(pooled: AsyncEngine, engine: Any) -> None:
    from rowsignal import LockTimeoutError, NotFoundError, PoolTimeoutError, add_exception_handlers

    ledger = Ledger(pooled, engine)
    add_exception_handlers(ledger.app)
    ledger.app.exception_handler(LockTimeoutError)(lambda *_: JSONResponse({}, 423))
    errors = {"404": NotFoundError, "503": PoolTimeoutError, "423": LockTimeoutError}

    @ledger.app.get("/raises/{status}")
    async def fail(status: str) -> None:
        raise errors[status]("It is so.")

    async with served(ledger.app) as client:
        for status in errors:
            answer = await client.get(f"/raises/{status}")
            assert str(answer.status_code) == status
            assert ("retry-after" in answer.headers) == (status == "503")
