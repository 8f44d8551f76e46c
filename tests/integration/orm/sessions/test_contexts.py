# ruff: noqa: PT012 -- the block is what raises
import asyncio

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

from rowsignal.exceptions import (
    MissingSessionError,
    PoolExhaustedError,
)
from rowsignal.orm.sessions.dependency import (
    create_db_context,
)
from support.people import Person, names

Maker = async_sessionmaker[AsyncSession]


async def test_a_context_commits_or_rolls_back(engine: AsyncEngine, maker: Maker) -> None:
    db_context = create_db_context(session_maker=maker)
    async with db_context() as session:
        session.add(Person(name="grace"))
    with pytest.raises(ZeroDivisionError):
        async with db_context() as session:
            session.add(Person(name="nobody"))
            await session.flush()
            raise ZeroDivisionError
    assert await names(engine) == ["ada", "grace"]


async def test_a_context_allows_commits_in_between(engine: AsyncEngine, maker: Maker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with create_db_context(maker)() as session:
            session.add(Person(name="grace"))
            await session.commit()
            session.add(Person(name="nobody"))
            raise ZeroDivisionError
    assert await names(engine) == ["ada", "grace"]


async def test_a_context_raises_what_its_commit_raises(engine: AsyncEngine, maker: Maker) -> None:
    with pytest.raises(IntegrityError):
        async with create_db_context(maker)() as session:
            session.add(Person(name="ada"))
    assert engine.pool.checkedout() == 0


async def test_a_timeout_of_the_blocks_own_is_not_called_an_exhausted_pool(maker: Maker) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with create_db_context(maker)() as session:
            await session.execute(select(1))
            raise TimeoutError
    assert not isinstance(caught.value, PoolExhaustedError)


async def test_an_exhausted_pool_leaves_a_context_as_its_own_error(database_url: str) -> None:
    small = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with small.connect():
        with pytest.raises(PoolExhaustedError, match="QueuePool limit of size 1"):
            async with create_db_context(async_sessionmaker(small))() as session:
                await session.execute(select(1))
    await small.dispose()


async def test_a_session_used_after_its_block_is_refused(engine: AsyncEngine, maker: Maker) -> None:
    async with create_db_context(maker)() as session:
        await session.execute(select(1))
    with pytest.raises(MissingSessionError, match="ended"):
        await session.execute(select(1))
    assert engine.pool.checkedout() == 0


async def test_a_cancelled_block_gives_its_connection_back(
    engine: AsyncEngine, maker: Maker
) -> None:
    running = asyncio.Event()

    async def work() -> None:
        async with create_db_context(maker)() as session:
            session.add(Person(name="nobody"))
            await session.flush()
            running.set()
            await session.execute(select(func.pg_sleep(60)))

    task = asyncio.create_task(work())
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.pool.checkedout() == 0
    assert await names(engine) == ["ada"]
