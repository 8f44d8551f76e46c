# ruff: noqa: PT012 -- the block is what raises
"""Waiting for a connection: for how long, for which sessions, and what the error says."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.exceptions import MissingSessionError, PoolTimeoutError
from rowsignal.orm import get_transaction
from rowsignal.orm.request_sessions.proxy import SessionProxy
from support.session_apps import Ledger, create_tables, entries, is_free
from support.web_server import served

Work = Callable[[SessionProxy], Awaitable[object]]
SIZE = 4
NONSENSE = (0, -1, float("nan"), float("inf"), True, "3")


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    # Nothing here may wait for the pool's own patience, which is longer than that of the test
    engine = create_async_engine(database_url, pool_size=SIZE, max_overflow=0, pool_timeout=300)
    await create_tables(engine)
    yield engine
    assert is_free(engine)
    await engine.dispose()


@pytest.fixture
def db(pooled: AsyncEngine) -> SessionProxy:
    return proxy_of(pooled)


def proxy_of(engine: AsyncEngine) -> SessionProxy:
    db = SessionProxy()
    db.init(custom_engine=engine, session_args={"class_": AsyncSession})
    return db


async def write(db: SessionProxy, row: int) -> None:
    await db.session.execute(text("insert into entry values (:row)"), {"row": row})


async def by_task(db: SessionProxy) -> None:
    await asyncio.create_task(write(db, 1))


async def by_gather(db: SessionProxy) -> None:
    await db.gather(write(db, 1))


async def by_parent(db: SessionProxy) -> None:
    await write(db, 1)


async def by_connection(db: SessionProxy) -> None:
    async with db.connection():
        pytest.fail("there is no connection")


@pytest.mark.parametrize(
    ("work", "limit"),
    [
        (by_task, None),
        *((work, limit) for work in (by_gather, by_parent, by_connection) for limit in (None, 2)),
    ],
)
async def test_timeout_of_a_block_bounds_the_wait_of_each_of_its_tasks(
    db: SessionProxy, pooled: AsyncEngine, work: Work, limit: int | None
) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(SIZE):
            await stack.enter_async_context(pooled.connect())
        with pytest.raises(PoolTimeoutError, match=r"0\.05 s") as error:
            async with db(multi_sessions=True, max_concurrent=limit, pool_timeout=0.05):
                await work(db)
    assert error.value.timeout == 0.05
    assert error.value.pool_status is not None
    assert error.value.pool_status["available"] == 0


async def test_block_of_tasks_leaves_the_only_connection_to_them(
    database_url: str, engine: AsyncEngine
) -> None:
    single = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=300)
    await create_tables(single)
    db = proxy_of(single)
    async with db(multi_sessions=True, pool_timeout=60, commit_on_exit=True):
        await db.gather(*(write(db, row) for row in range(3)))
    assert await entries(engine) == [0, 1, 2]
    await single.dispose()


async def test_nested_block_of_a_task_waits_for_the_tasks_beside_it(
    db: SessionProxy, engine: AsyncEngine
) -> None:
    go, holding = asyncio.Event(), asyncio.Barrier(SIZE)

    async def hold(row: int) -> None:
        await write(db, row)
        await holding.wait()
        await go.wait()

    async def nest(row: int) -> None:
        await write(db, row)
        await holding.wait()
        go.set()  # the others go on when this one waits
        async with db(commit_on_exit=True):
            await write(db, row + 1)

    async with db(multi_sessions=True, commit_on_exit=True):
        await db.gather(*(hold(row) for row in range(SIZE - 1)), nest(SIZE))
    assert await entries(engine) == [0, 1, 2, 4, 5]


async def test_nested_block_that_waits_for_its_own_task_is_refused(database_url: str) -> None:
    single = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=300)
    await create_tables(single)
    db = proxy_of(single)

    async def nest() -> None:
        await write(db, 1)
        async with db():
            await write(db, 2)

    with pytest.raises(PoolTimeoutError, match="around") as error:
        async with db(multi_sessions=True):
            await db.gather(nest())
    assert error.value.pool_status is not None
    await single.dispose()


@pytest.mark.parametrize("by_parent", [True, False])
async def test_whole_block_larger_than_the_pool_is_refused(
    db: SessionProxy, engine: AsyncEngine, by_parent: bool
) -> None:
    tasks = SIZE if by_parent else SIZE + 1
    with pytest.raises(PoolTimeoutError, match="around"):
        async with db(multi_sessions=True, all_or_nothing=True, commit_on_exit=True):
            await db.gather(*(write(db, row) for row in range(tasks)))
            await write(db, tasks)
    assert await entries(engine) == []


async def test_pools_own_timeout_is_told_with_its_numbers(database_url: str) -> None:
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    db = proxy_of(engine)
    async with engine.connect():
        with pytest.raises(PoolTimeoutError) as error:
            async with db():
                await db.session.execute(text("select 1"))
    assert error.value.timeout == 0.05
    assert error.value.pool_status is not None
    assert error.value.pool_status["saturation"] == 1
    await engine.dispose()


async def test_place_that_does_not_become_free_is_told_with_the_pools_numbers(
    db: SessionProxy,
) -> None:
    with pytest.raises(PoolTimeoutError, match="sessions became free") as error:
        async with db(multi_sessions=True, max_concurrent=1):
            await write(db, 1)
            await asyncio.create_task(lend(db, 0.05))
    assert error.value.timeout == 0.05
    assert error.value.pool_status is not None


async def lend(db: SessionProxy, timeout: float) -> None:
    async with db.connection(timeout=timeout):
        pytest.fail("there is no place")


@pytest.mark.parametrize("seconds", NONSENSE)
async def test_timeouts_that_mean_nothing_are_refused(db: SessionProxy, seconds: Any) -> None:
    for options in ({}, {"multi_sessions": True}):
        with pytest.raises(ValueError, match="pool_timeout"):
            db(pool_timeout=seconds, **options)
    with pytest.raises(ValueError, match="timeout"):
        db.connection(timeout=seconds)


@pytest.mark.parametrize("limit", [*NONSENSE, 2.5, 2.0])
async def test_limits_that_mean_nothing_are_refused(db: SessionProxy, limit: Any) -> None:
    with pytest.raises(ValueError, match="max_concurrent"):
        db(multi_sessions=True, max_concurrent=limit)


async def test_connection_lends_the_session_of_the_block(
    db: SessionProxy, engine: AsyncEngine
) -> None:
    async with db(commit_on_exit=True):
        async with db.connection() as session:
            assert session is db.session
            await session.execute(text("insert into entry values (1)"))
        async with db.connection(timeout=60) as session:
            await session.execute(text("insert into entry values (2)"))
    assert await entries(engine) == [1, 2]


async def test_connection_lends_the_session_of_the_request(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine)

    @ledger.app.post("/lent")
    async def lent() -> None:
        async with ledger.db.connection() as session:
            await session.execute(text("insert into entry values (1)"))

    async with served(ledger.app) as client:
        assert (await client.post("/lent")).status_code == 200
    assert await entries(engine) == [1]


async def test_connection_outside_of_a_block_is_refused(db: SessionProxy) -> None:
    with pytest.raises(MissingSessionError):
        async with db.connection():
            pytest.fail("there is no session")


@pytest.mark.parametrize("commits", [1, 2, 3])
async def test_cancellation_between_the_commits_of_a_whole_block_lets_it_finish(
    db: SessionProxy, pooled: AsyncEngine, engine: AsyncEngine, commits: int
) -> None:
    seen: list[object] = []

    def cancel(connection: object) -> None:
        seen.append(connection)
        if len(seen) == commits:
            task.cancel()

    async def work() -> None:
        async with db(multi_sessions=True, all_or_nothing=True, commit_on_exit=True):
            await write(db, 0)
            await db.gather(*(write(db, row) for row in range(1, SIZE)))

    task = asyncio.ensure_future(work())
    event.listen(pooled.sync_engine, "commit", cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await entries(engine) == [0, 1, 2, 3]


async def test_whole_block_that_is_cancelled_before_its_commits_leaves_nothing(
    db: SessionProxy, pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    def cancel(connection: object, cursor: object, statement: str, *_: object) -> None:
        if "constraints" in statement:
            task.cancel()

    async def work() -> None:
        async with db(multi_sessions=True, all_or_nothing=True, commit_on_exit=True):
            await db.gather(*(write(db, row) for row in range(SIZE)))

    task = asyncio.ensure_future(work())
    event.listen(pooled.sync_engine, "before_cursor_execute", cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await entries(engine) == []


async def test_block_without_autobegin_ends_well_after_its_own_transaction(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    db = SessionProxy()
    arguments = {"class_": AsyncSession, "autobegin": False}
    db.init(custom_engine=pooled, session_args=arguments)
    async with db(commit_on_exit=True), db.session.begin():
        await write(db, 1)
    async with db(commit_on_exit=True):
        await db.session.begin()
        await write(db, 2)
    assert await entries(engine) == [1, 2]


async def test_block_without_autobegin_is_one_transaction_as_well(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    db = SessionProxy()
    arguments = {"class_": AsyncSession, "autobegin": False}
    db.init(custom_engine=pooled, session_args=arguments)
    with pytest.raises(LookupError):
        async with db():
            async with get_transaction(db.session):
                await write(db, 1)
            raise LookupError
    assert await entries(engine) == []
    async with db(), get_transaction(db.session):
        await write(db, 1)
    assert await entries(engine) == [1]


async def test_request_without_autobegin_is_no_failure(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    arguments = {"class_": AsyncSession, "autobegin": False}
    ledger = Ledger(pooled, engine, session_args=arguments)

    @ledger.app.post("/begun")
    async def begun() -> None:
        async with ledger.db.session.begin():
            await write(ledger.db, 1)

    async with served(ledger.app) as client:
        assert (await client.post("/begun")).status_code == 200
    assert await entries(engine) == [1]
