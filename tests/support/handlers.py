"""A logged table whose changes are handled, with effects that can be counted in the database."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change
from rowsignal.handlers import ChangeHandlers, ConsumerLag, Retry, consumer_lag
from rowsignal.triggers import install_triggers

PATIENCE = 60.0
AT_ONCE = Retry(attempts=3, delay=0.0, max_delay=0.0)


class Base(DeclarativeBase):
    pass


class Task(Base):
    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(default=0)
    note: Mapped[str] = mapped_column(default="")


class Effect(Base):
    """What handlers do: a row for each change that was handled, unique or not."""

    __tablename__ = "effects"

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int]
    step: Mapped[int]
    consumer: Mapped[str] = mapped_column(default="")


async def make_tables(engine: AsyncEngine, **settings: Any) -> None:
    """Create the tables and log the changes of tasks, with their values."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Task, log=True, row_values=True, **settings)


async def write(engine: AsyncEngine, *tasks: int, step: int = 0) -> None:
    """Insert tasks in one transaction."""
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Task), [{"id": key, "step": step} for key in tasks])


async def record(session: AsyncSession, change: Change, consumer: str = "") -> None:
    """Handle a change: note it."""
    assert change.key is not None
    row = change.row or {}
    session.add(Effect(task_id=change.key["id"], step=row.get("step", -1), consumer=consumer))


async def effects(engine: AsyncEngine, consumer: str = "") -> list[tuple[int, int]]:
    """Return (task, step) of what was handled, in order."""
    query = sa.select(Effect.task_id, Effect.step).order_by(Effect.id)
    async with engine.connect() as connection:
        rows = await connection.execute(query.where(Effect.consumer == consumer))
        return [tuple(row) for row in rows]


async def until_handled(engine: AsyncEngine, count: int, consumer: str = "") -> None:
    """Return when so many effects are there."""
    async with asyncio.timeout(PATIENCE):
        while len(await effects(engine, consumer)) < count:
            await asyncio.sleep(0.02)


async def until_lag(
    engine: AsyncEngine, is_wanted: Callable[[ConsumerLag], bool], *, partition: int = 0
) -> ConsumerLag:
    """Return a partition's lag when it is as wanted."""
    async with asyncio.timeout(PATIENCE):
        while True:
            for lag in await consumer_lag(engine):
                if lag.partition == partition and is_wanted(lag):
                    return lag
            await asyncio.sleep(0.02)


@asynccontextmanager
async def recording(engine: AsyncEngine, **options: Any) -> AsyncIterator[ChangeHandlers]:
    """Have the changes of tasks noted by one consumer, `recorder`."""
    changes = ChangeHandlers(engine, lease=options.pop("lease", 2.0))
    options = {"name": "recorder", "start": "beginning", "retry": AT_ONCE} | options
    handler = options.pop("handler", record)
    changes.on(Task, **options)(handler)
    async with changes:
        yield changes
