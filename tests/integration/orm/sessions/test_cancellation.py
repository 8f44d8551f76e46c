import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.orm.locks.advisory import advisory_lock
from rowsignal.orm.locks.tables import lock_tables
from rowsignal.orm.sessions.dependency import create_db_context


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)


Maker = async_sessionmaker[AsyncSession]


async def in_a_context(maker: Maker) -> None:
    async with create_db_context(maker)() as session:
        session.add(Note())
        await session.flush()


async def in_an_advisory_lock(maker: Maker) -> None:
    async with maker() as session, advisory_lock(session, 1):
        session.add(Note())
        await session.commit()
        await session.execute(text("select 1"))


async def in_a_failing_advisory_lock(maker: Maker) -> None:
    async with maker() as session:
        with suppress(ZeroDivisionError):
            async with advisory_lock(session, 1):
                await session.execute(text("select 1"))
                raise ZeroDivisionError


async def in_a_table_lock(maker: Maker) -> None:
    async with lock_tables(maker, [Note], timeout=1) as session:
        session.add(Note())


@pytest.mark.parametrize(
    "work", [in_a_context, in_an_advisory_lock, in_a_failing_advisory_lock, in_a_table_lock]
)
async def test_a_cancellation_at_any_step_leaves_no_connection_out_and_no_lock_held(
    engine: AsyncEngine, work: Callable[[Maker], Awaitable[None]]
) -> None:
    maker = async_sessionmaker(engine)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    cancelled = finished = steps = 0
    while finished < 3 and steps < 40:
        task = asyncio.ensure_future(work(maker))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        cancelled, finished = cancelled + task.cancelled(), finished + (not task.cancelled())
        steps += 1
        assert engine.pool.checkedout() == 0
        # The server notices a closed connection in its own time, but soon
        async with maker() as session, advisory_lock(session, 1, timeout=5):
            async with lock_tables(session, [Note], mode="ACCESS EXCLUSIVE", timeout=5):
                pass
            await session.rollback()
    assert cancelled > 5
