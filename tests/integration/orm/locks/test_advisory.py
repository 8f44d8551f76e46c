# ruff: noqa: PT012 -- the block under test is what raises
import asyncio
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.exceptions import DeadlockError, LockLostError, LockTimeoutError
from rowsignal.orm.locks.advisory import advisory_lock, lock_numbers
from rowsignal.orm.sessions.transactions import get_transaction

Maker = async_sessionmaker[AsyncSession]

FAILING = text("select 1 / 0")


class Base(DeclarativeBase):
    pass


class Unsaved(Base):
    __tablename__ = "unsaved"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def maker(engine: AsyncEngine) -> Maker:
    return async_sessionmaker(engine)


async def is_free(maker: Maker, key: Any) -> bool:
    async with maker() as other, advisory_lock(other, key, nowait=True) as acquired:
        return acquired


async def until_waiting(maker: Maker) -> None:
    """Return when a backend of this database waits for an advisory lock."""
    query = text(
        "select exists (select from pg_locks where locktype = 'advisory' and not granted"
        " and database = (select oid from pg_database where datname = current_database()))"
    )
    async with asyncio.timeout(30), maker() as session:
        while not await session.scalar(query):
            await session.rollback()


@pytest.mark.parametrize("key", [42, -(2**63), (1, -2), "any text: ü", ""])
async def test_a_lock_excludes_others_until_its_block_ends(maker: Maker, key: Any) -> None:
    async with maker() as session:
        async with advisory_lock(session, key) as acquired:
            assert acquired is True
            assert not await is_free(maker, key)
        assert await is_free(maker, key)


async def test_a_taken_lock_is_false_at_once_with_nowait(maker: Maker) -> None:
    async with maker() as holder, maker() as session, advisory_lock(holder, 1):
        async with advisory_lock(session, 1, nowait=True) as acquired:
            assert acquired is False
        assert not await is_free(maker, 1)


async def test_shared_locks_admit_each_other_and_no_others(maker: Maker) -> None:
    async with maker() as first, maker() as second, advisory_lock(first, 1, shared=True):
        async with advisory_lock(second, 1, shared=True) as acquired:
            assert acquired is True
        assert not await is_free(maker, 1)


async def test_a_text_key_is_what_its_documented_sql_says(maker: Maker) -> None:
    query = text(
        "select ('x' || encode(substr(sha256(convert_to(:key, 'UTF8')), 1, 8), 'hex'))"
        "::bit(64)::bigint"
    )
    async with maker() as session:
        for key in ("", "invoices:2026", "Grüße"):
            assert lock_numbers(key) == (await session.scalar(query, {"key": key}),)


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (2**63, ValueError),
        ((2**31, 0), ValueError),
        ((1, 2, 3), TypeError),
        (1.5, TypeError),
        (True, TypeError),
        (None, TypeError),
    ],
)
async def test_an_impossible_key_is_refused(maker: Maker, key: Any, error: type[Exception]) -> None:
    async with maker() as session:
        with pytest.raises(error):
            async with advisory_lock(session, key):
                pass
        assert not session.in_transaction()


@pytest.mark.parametrize("timeout", [0, 0.05, "50ms"])
@pytest.mark.parametrize("xact", [True, False])
async def test_a_lock_that_is_not_granted_in_time_leaves_the_transaction_usable(
    maker: Maker, timeout: Any, xact: bool
) -> None:
    async with maker() as holder, maker() as session, advisory_lock(holder, "busy"):
        await session.execute(text("create temp table mine (id int)"))
        with pytest.raises(LockTimeoutError, match="'busy'"):
            async with advisory_lock(session, "busy", timeout=timeout, xact=xact):
                pass
        assert await session.scalar(text("select count(*) from mine")) == 0
        assert await session.scalar(text("show lock_timeout")) == "0"


async def test_another_driver_waits_fails_and_recovers_alike(
    database_url: str, maker: Maker
) -> None:
    psycopg = create_async_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    async with AsyncSession(psycopg) as session:
        async with maker() as holder, advisory_lock(holder, 1):
            with pytest.raises(LockTimeoutError):
                async with advisory_lock(session, 1, timeout=0.05):
                    pass
        with pytest.raises(DBAPIError, match="division by zero"):
            async with advisory_lock(session, 1):
                await session.execute(FAILING)
        assert await is_free(maker, 1)
    await psycopg.dispose()


async def test_a_waiter_gets_the_lock_when_it_is_given_back(maker: Maker) -> None:
    async def wait() -> bool:
        async with maker() as session, advisory_lock(session, 1, timeout=15) as acquired:
            return acquired

    async with maker() as holder:
        async with advisory_lock(holder, 1):
            task = asyncio.create_task(wait())
            await until_waiting(maker)
            assert not task.done()
        assert await task is True
    assert await is_free(maker, 1)


async def test_a_failing_statement_is_the_error_and_the_lock_is_given_back(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        with pytest.raises(DBAPIError, match="division by zero"):
            async with advisory_lock(session, 1):
                await session.execute(FAILING)
        assert await is_free(maker, 1)
        assert await session.scalar(select(1)) == 1
    assert engine.pool.checkedout() == 0


async def test_a_failing_statement_that_was_caught_gives_the_lock_back_too(maker: Maker) -> None:
    async with maker() as session:
        async with advisory_lock(session, 1):
            with suppress(DBAPIError):
                await session.execute(FAILING)
        assert await is_free(maker, 1)


async def test_a_failure_inside_a_savepoint_costs_no_more_than_the_savepoint(
    maker: Maker,
) -> None:
    async with maker() as session:
        await session.execute(text("create temp table mine (id int)"))
        with suppress(DBAPIError):
            async with get_transaction(session), advisory_lock(session, 1):
                await session.execute(FAILING)
        assert await is_free(maker, 1)
        assert await session.scalar(text("select count(*) from mine")) == 0


@pytest.mark.parametrize("read_first", [True, False])
async def test_a_commit_in_the_block_keeps_the_lock(
    engine: AsyncEngine, maker: Maker, read_first: bool
) -> None:
    async with maker() as session:
        if read_first:
            await session.execute(select(1))
        async with advisory_lock(session, 1):
            await session.commit()
            assert not await is_free(maker, 1)
            pid = await session.scalar(select(func.pg_backend_pid()))
            await session.rollback()
            assert not await is_free(maker, 1)
            assert await session.scalar(select(func.pg_backend_pid())) == pid
        assert await is_free(maker, 1)
        await session.commit()
        assert engine.pool.checkedout() == 0
        await session.execute(select(1))
        assert engine.pool.checkedout() == 1
    assert engine.pool.checkedout() == 0


async def test_a_block_that_ends_committed_gives_its_connection_back(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        async with advisory_lock(session, 1):
            await session.commit()
        assert engine.pool.checkedout() == 0


async def test_a_session_closed_in_the_block_gives_everything_back(
    engine: AsyncEngine, maker: Maker
) -> None:
    session = maker()
    async with advisory_lock(session, 1):
        await session.close()
        assert not await is_free(maker, 1)
    assert await is_free(maker, 1)
    assert engine.pool.checkedout() == 0


async def test_one_connection_is_enough(database_url: str) -> None:
    small = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with async_sessionmaker(small)() as session:
        await session.execute(select(1))
        async with advisory_lock(session, 1):
            await session.execute(select(1))
            await session.commit()
            await session.execute(select(1))
    await small.dispose()


async def test_the_same_session_may_take_a_lock_twice(maker: Maker) -> None:
    async with maker() as session:
        async with advisory_lock(session, 1):
            async with advisory_lock(session, 1), advisory_lock(session, 2):
                await session.commit()
            assert await is_free(maker, 2)
            assert not await is_free(maker, 1)
        assert await is_free(maker, 1)


async def test_a_session_bound_to_a_connection_keeps_it(engine: AsyncEngine, maker: Maker) -> None:
    async with engine.connect() as connection, AsyncSession(connection) as session:
        async with advisory_lock(session, 1):
            await session.commit()
            assert not await is_free(maker, 1)
        assert await is_free(maker, 1)
        assert not connection.closed


async def test_a_connection_lost_in_the_block_is_said(engine: AsyncEngine, maker: Maker) -> None:
    async with maker() as session:
        with pytest.raises(LockLostError, match="another session may have held it"):
            async with advisory_lock(session, "lost"):
                pid = await session.scalar(select(func.pg_backend_pid()))
                async with engine.connect() as other:
                    await other.execute(select(func.pg_terminate_backend(pid, 5000)))
                with suppress(DBAPIError):
                    await session.execute(select(1))
                await session.rollback()
                await session.execute(select(1))
    assert engine.pool.checkedout() == 0


async def test_a_lost_connection_does_not_mask_the_blocks_error(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as session:
        with pytest.raises(DBAPIError, match="connection"):
            async with advisory_lock(session, 1):
                pid = await session.scalar(select(func.pg_backend_pid()))
                async with engine.connect() as other:
                    await other.execute(select(func.pg_terminate_backend(pid, 5000)))
                await session.execute(select(1))
    assert engine.pool.checkedout() == 0


async def test_a_cancelled_block_gives_the_lock_back(engine: AsyncEngine, maker: Maker) -> None:
    inside = asyncio.Event()

    async def hold() -> None:
        async with maker() as session, advisory_lock(session, 1):
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(hold())
    await inside.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await is_free(maker, 1)
    assert engine.pool.checkedout() == 0


async def test_a_cancelled_waiter_leaves_nothing_behind(engine: AsyncEngine, maker: Maker) -> None:
    async def wait() -> None:
        async with maker() as session, advisory_lock(session, 1):
            pass

    async with maker() as holder:
        async with advisory_lock(holder, 1):
            task = asyncio.create_task(wait())
            await until_waiting(maker)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await is_free(maker, 1)
    assert engine.pool.checkedout() == 0


async def test_with_xact_the_lock_lasts_as_long_as_the_transaction(maker: Maker) -> None:
    async with maker() as session:
        async with advisory_lock(session, 1, xact=True) as acquired:
            assert acquired is True
        assert not await is_free(maker, 1)
        await session.commit()
        assert await is_free(maker, 1)


async def test_a_deadlock_of_two_locks_is_found(maker: Maker) -> None:
    async with maker() as first, maker() as second:
        await first.execute(text("set local deadlock_timeout = '20ms'"))
        await second.execute(text("set local deadlock_timeout = '60s'"))
        async with advisory_lock(second, 2):
            async with advisory_lock(first, 1):
                waiting = asyncio.create_task(enter(second, 1))
                await until_waiting(maker)
                with pytest.raises(DeadlockError, match="key 2"):
                    await enter(first, 2)
            await waiting


async def enter(session: AsyncSession, key: int) -> None:
    async with advisory_lock(session, key):
        pass


async def test_taking_a_lock_does_not_flush_what_is_pending(maker: Maker) -> None:
    flushes: list[object] = []
    async with maker() as session:
        event.listen(session.sync_session, "before_flush", lambda *_: flushes.append(1))
        session.add(Unsaved(id=1))
        async with advisory_lock(session, 1):
            pass
        session.expunge_all()
    assert flushes == []
