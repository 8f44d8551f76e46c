"""A session for each task of a block: for which, how many, and what is committed."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.exceptions import MissingSessionError, PoolTimeoutError, RolledBackError
from rowsignal.orm.request_sessions.proxy import SessionProxy
from support.session_apps import create_tables, entries, is_free, kill_backend


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=4, max_overflow=0, pool_timeout=2)
    await create_tables(engine)
    yield engine
    assert is_free(engine)
    await engine.dispose()


@pytest.fixture
def db(pooled: AsyncEngine) -> SessionProxy:
    db = SessionProxy()
    db.init(custom_engine=pooled, session_args={"class_": AsyncSession})
    return db


async def write(db: SessionProxy, row: int, parent: int | None = None) -> int:
    statement = text("insert into entry values (:id, :parent)")
    await db.session.execute(statement, {"id": row, "parent": parent})
    return row


async def fail(db: SessionProxy, row: int) -> None:
    await write(db, row)
    raise LookupError(row)


async def test_tasks_have_sessions_of_their_own(db: SessionProxy, engine: AsyncEngine) -> None:
    async def session() -> AsyncSession:
        assert db.session is db.session
        await write(db, len(sessions))
        return db.session

    sessions: list[AsyncSession] = []
    async with db(multi_sessions=True, commit_on_exit=True):
        sessions.append(db.session)
        sessions += await asyncio.gather(*(asyncio.create_task(session()) for _ in range(1)))
        sessions += await db.gather(session())
    assert len({id(one) for one in sessions}) == 3
    assert await entries(engine) == [1, 2]


async def test_gather_returns_after_its_commits(db: SessionProxy, engine: AsyncEngine) -> None:
    async with db(multi_sessions=True, commit_on_exit=True):
        assert await db.gather(*(write(db, row) for row in range(3))) == [0, 1, 2]
        count = text("select count(*) from entry")
        assert await db.session.scalar(count) == 3
        assert await entries(engine) == [0, 1, 2]


async def test_block_waits_for_its_tasks(db: SessionProxy, engine: AsyncEngine) -> None:
    go = asyncio.Event()

    async def slow() -> None:
        await write(db, 1)
        await go.wait()
        await write(db, 2)

    async with db(multi_sessions=True, commit_on_exit=True):
        task = asyncio.create_task(slow())
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(go.set)
    assert task.done()
    assert await entries(engine) == [1, 2]


async def test_failing_block_cancels_its_tasks(db: SessionProxy, engine: AsyncEngine) -> None:
    async def endless() -> None:
        await write(db, 1)
        started.set()
        await asyncio.Event().wait()

    started = asyncio.Event()
    with pytest.raises(LookupError):  # noqa: PT012 # the block raises
        async with db(multi_sessions=True, commit_on_exit=True):
            task = asyncio.create_task(endless())
            await started.wait()
            raise LookupError
    assert task.cancelled()
    assert await entries(engine) == []


async def test_failed_task_loses_only_its_own_work(db: SessionProxy, engine: AsyncEngine) -> None:
    async with db(multi_sessions=True, commit_on_exit=True):
        results = await db.gather(write(db, 1), fail(db, 2), return_exceptions=True)
        assert isinstance(results[1], LookupError)
    assert await entries(engine) == [1]


async def test_commit_that_fails_in_a_task_fails_the_block(
    db: SessionProxy, engine: AsyncEngine
) -> None:
    with pytest.raises(IntegrityError):  # noqa: PT012 # the block raises
        async with db(multi_sessions=True, commit_on_exit=True):
            await write(db, 1)
            await asyncio.create_task(write(db, 2, parent=9))
    assert await entries(engine) == []
    with pytest.raises(ExceptionGroup):
        async with db(multi_sessions=True, commit_on_exit=True):
            await asyncio.wait([asyncio.create_task(write(db, n, parent=9)) for n in range(2)])


async def test_limit_counts_the_parent(db: SessionProxy, pooled: AsyncEngine) -> None:
    most = 0

    async def count() -> None:
        nonlocal most
        await db.session.execute(text("select 1"))
        most = max(most, pooled.pool.checkedout())  # type: ignore[attr-defined]

    async with db(multi_sessions=True, max_concurrent=3):
        await db.session.execute(text("select 1"))
        await db.gather(*(count() for _ in range(10)))
    assert most == 3


async def test_gather_that_could_never_begin_is_an_error(db: SessionProxy) -> None:
    async def inner() -> list[Any]:
        await db.session.execute(text("select 1"))
        return await db.gather(write(db, 1))

    async with db(multi_sessions=True, max_concurrent=1):
        with pytest.raises(PoolTimeoutError, match="max_concurrent"):
            await db.gather(inner())
        await db.session.execute(text("select 1"))
        with pytest.raises(PoolTimeoutError, match="max_concurrent"):
            await db.gather(write(db, 1))


async def test_parent_without_a_place_is_told_so(db: SessionProxy) -> None:
    async def hold() -> None:
        async with db.connection():
            held.set()
            await release.wait()

    held, release = asyncio.Event(), asyncio.Event()
    async with db(multi_sessions=True, max_concurrent=1):
        task = asyncio.create_task(hold())
        await held.wait()
        with pytest.raises(PoolTimeoutError, match="taken"):
            _ = db.session
        with pytest.raises(PoolTimeoutError, match=r"0\.01 s"):
            async with db.connection(timeout=0.01):
                pytest.fail("there is no place")
        release.set()
        await task
        assert db.session is not None


async def test_connection_within_gather_is_the_same_place(db: SessionProxy) -> None:
    async def work(number: int) -> bool:
        async with db.connection() as session:
            return session is db.session and await session.scalar(text("select 1")) == 1

    async with db(multi_sessions=True, max_concurrent=1):
        assert await db.gather(*(work(number) for number in range(5))) == [True] * 5


async def test_throttled_tasks_of_ones_own_use_connection(db: SessionProxy) -> None:
    async def unthrottled() -> None:
        _ = db.session

    async def throttled(number: int) -> int | None:
        async with db.connection() as session:
            return await session.scalar(text("select cast(:n as int)"), {"n": number})

    async with db(multi_sessions=True, max_concurrent=2):
        with pytest.raises(MissingSessionError, match=r"db\.connection"):
            await asyncio.create_task(unthrottled())
        tasks = [asyncio.create_task(throttled(number)) for number in range(8)]
        assert await asyncio.gather(*tasks) == list(range(8))


async def test_throttled_gather_takes_coroutines_only(db: SessionProxy) -> None:
    async with db(multi_sessions=True, max_concurrent=2):
        task = asyncio.create_task(asyncio.sleep(0))
        with pytest.raises(TypeError, match="create_task"):
            await db.gather(task, write(db, 1))
        await task
    async with db(multi_sessions=True):
        task = asyncio.create_task(asyncio.sleep(0, "mixed"))
        assert await db.gather(task, write(db, 1)) == ["mixed", 1]


async def test_throttled_gather_cancels_siblings(db: SessionProxy, engine: AsyncEngine) -> None:
    async def endless() -> None:
        try:
            await write(db, 1)
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    ended: list[bool] = []
    async with db(multi_sessions=True, max_concurrent=3, commit_on_exit=True):
        with pytest.raises(LookupError):
            await db.gather(endless(), fail(db, 2), endless(), endless())
        # One of them may never have had a place to begin in
        assert len(ended) in (1, 2, 3)
        assert len(asyncio.all_tasks()) == 1
    assert await entries(engine) == []


async def test_block_of_a_generator_ends_in_a_task_that_used_it(db: SessionProxy) -> None:
    async def rows() -> AsyncIterator[int | None]:
        async with db(multi_sessions=True):
            while True:
                yield await db.session.scalar(text("select 1"))

    async def close() -> None:
        assert await anext(generator) == 1
        await generator.aclose()  # type: ignore[attr-defined]

    generator = rows()
    assert await anext(generator) == 1
    await asyncio.create_task(close())
    assert db.pool_status()["checked_out"] == 0


async def test_ended_block_gives_no_session(db: SessionProxy) -> None:
    async def late() -> None:
        await over.wait()
        with pytest.raises(MissingSessionError, match="async with db"):
            async with db.connection():
                pytest.fail("the block is over")
        with pytest.raises(MissingSessionError, match="async with db"):
            await db.gather(write(db, 1))
        with pytest.raises(MissingSessionError, match="async with db"):
            _ = db.session

    over = asyncio.Event()
    async with db(multi_sessions=True):
        task = asyncio.create_task(late())
    over.set()
    await task


@pytest.mark.parametrize("failure", ["parent", "child", "swallowed", "deferred", "lost"])
async def test_all_or_nothing_leaves_nothing(
    db: SessionProxy, engine: AsyncEngine, failure: str
) -> None:
    expected = {
        "swallowed": RolledBackError,
        "deferred": IntegrityError,
        "lost": DBAPIError,
    }
    with pytest.raises(expected.get(failure, LookupError)):  # noqa: PT012 # the block raises
        async with db(multi_sessions=True, commit_on_exit=True, all_or_nothing=True):
            await write(db, 0)
            await db.gather(write(db, 1), write(db, 2, parent=9 if failure == "deferred" else None))
            assert await entries(engine) == []
            if failure == "parent":
                raise LookupError
            if failure in ("child", "swallowed"):
                await db.gather(fail(db, 3), return_exceptions=failure == "swallowed")
            if failure == "lost":
                await kill_backend(db.session, engine)
    assert await entries(engine) == []


async def test_all_or_nothing_commits_together(db: SessionProxy, engine: AsyncEngine) -> None:
    async with db(multi_sessions=True, commit_on_exit=True, all_or_nothing=True):
        await db.gather(write(db, 1), asyncio.sleep(0))
        await asyncio.create_task(write(db, 2))
        assert await entries(engine) == []
    assert await entries(engine) == [1, 2]


def test_options_that_contradict_each_other_are_refused(db: SessionProxy) -> None:
    with pytest.raises(ValueError, match="all_or_nothing"):
        db(multi_sessions=True, all_or_nothing=True, max_concurrent=2)
    with pytest.raises(ValueError, match="multi_sessions"):
        db(max_concurrent=2)


async def test_limit_must_be_positive(db: SessionProxy) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        async with db(multi_sessions=True, max_concurrent=0):
            pytest.fail("no session is possible")


async def test_gather_outside_of_such_a_block_is_that_of_asyncio(db: SessionProxy) -> None:
    assert await db.gather(asyncio.sleep(0, 1), asyncio.sleep(0, 2)) == [1, 2]
    async with db(), db.connection() as session:
        assert session is db.session
        assert await session.scalar(text("select 1")) == 1
