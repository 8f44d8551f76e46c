"""When changes are missing: it is told, recorded, and warned of before."""

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.doctor import Severity, diagnose
from rowsignal.handlers import (
    ChangeHandlers,
    ConsumerReset,
    consumer_lag,
    drop_consumer,
    reset_consumer,
)
from rowsignal.hooks import Hooks
from rowsignal.retention import Retention, prune, set_retention
from support.change_log import connect
from support.handlers import (
    AT_ONCE,
    Effect,
    Task,
    effects,
    record,
    recording,
    until_handled,
    until_lag,
    write,
)
from support.waits import close_listener

pytestmark = pytest.mark.usefixtures("tables")


async def overtake(engine: AsyncEngine) -> None:
    """Prune all there is; the first call only takes note."""
    for _ in range(3):
        await prune(engine, Retention(max_age=0.0), pause=0.0)


async def test_retention_that_overtakes_is_recorded_and_told_once(engine: AsyncEngine) -> None:
    async with recording(engine):
        await write(engine, 1)
        await until_handled(engine, 1)
    await write(engine, 2)
    await overtake(engine)
    (lag,) = await consumer_lag(engine)
    assert lag.problem == "retention has deleted changes that were not handled"
    connection = await connect(engine)
    query = "select overtaken_at from rowsignal.consumer_partition"
    assert await connection.fetchval(query), "pruning has recorded it, with no worker alive"
    await connection.close()

    told: list[ConsumerReset] = []
    changes = ChangeHandlers(engine, lease=1.0)
    changes.on(Task, name="recorder", retry=AT_ONCE)(record)

    @changes.on_reset("recorder")
    async def catch_up(session: AsyncSession, reset: ConsumerReset) -> None:
        """Do for all rows what was not done for their changes."""
        told.append(reset)
        done = sa.select(Effect.task_id)
        for task in await session.scalars(sa.select(Task).where(Task.id.not_in(done))):
            session.add(Effect(task_id=task.id, step=99))
        if len(told) == 1:
            raise RuntimeError("the first attempt fails")

    async with changes:
        await until_handled(engine, 2)
        await write(engine, 3)
        await until_handled(engine, 3)
    assert await effects(engine) == [(1, 0), (2, 99), (3, 0)]
    assert [reset.reason for reset in told] == [
        "Changes are missing: retention has deleted changes that were not handled."
    ] * 2
    (lag,) = await consumer_lag(engine)
    assert (lag.problem, lag.resets) == (None, 1)
    assert lag.reset_reason == "retention has deleted changes that were not handled"


async def test_without_a_hook_the_consumer_goes_on(engine: AsyncEngine) -> None:
    async with recording(engine):
        await write(engine, 1)
        await until_handled(engine, 1)
    await write(engine, 2)
    await overtake(engine)
    async with recording(engine):
        await until_lag(engine, lambda lag: lag.resets == 1)
        await write(engine, 3)
        await until_handled(engine, 2)
    assert await effects(engine) == [(1, 0), (3, 0)]


async def test_a_hook_for_any_consumer_is_called_for_each_partition(engine: AsyncEngine) -> None:
    async with recording(engine, partitions=2):
        pass
    await write(engine, 1)
    await overtake(engine)
    told: list[tuple[str, int, int]] = []
    changes = ChangeHandlers(engine)
    changes.on(Task, name="recorder", partitions=2)(record)

    @changes.on_reset
    async def note(session: AsyncSession, reset: ConsumerReset) -> None:
        told.append((reset.consumer, reset.partition, reset.partitions))

    async with changes:
        await until_lag(engine, lambda lag: lag.resets == 1)
        await until_lag(engine, lambda lag: lag.resets == 1, partition=1)
    assert sorted(told) == [("recorder", 0, 2), ("recorder", 1, 2)]


async def test_a_consumer_that_keeps_up_is_not_overtaken(engine: AsyncEngine) -> None:
    async with recording(engine):
        for task in range(5):
            await write(engine, task)
            await until_handled(engine, task + 1)
            await overtake(engine)
    async with recording(engine):
        await write(engine, 9)
        await until_handled(engine, 6)
    (lag,) = await consumer_lag(engine)
    assert lag.resets == 0


async def test_doctor_warns_before_retention_overtakes(engine: AsyncEngine) -> None:
    async with recording(engine):
        pass
    assert await _consumers(engine) == [Severity.OK]
    await set_retention(engine, Retention(max_age=3600.0, max_bytes=20_000))
    await write(engine, *range(60))
    await prune(engine)
    await write(engine, *range(100, 130))
    await prune(engine)
    (lag,) = await consumer_lag(engine)
    assert lag.retention_used is not None
    assert 0.5 < lag.retention_used < 1.0
    assert await _consumers(engine) == [Severity.WARNING, Severity.NOTE]  # no worker handles it
    await overtake(engine)
    assert Severity.ERROR in await _consumers(engine)


async def _consumers(engine: AsyncEngine) -> list[Severity]:
    found = await diagnose(engine)
    return [finding.severity for finding in found if finding.subject.startswith("consumer")]


async def test_hooks_hear_what_becomes_of_changes(engine: AsyncEngine) -> None:
    heard: list[object] = []

    class Noting(Hooks):
        def handled(self, *, consumer: str, count: int, seconds: float) -> None:
            heard.append((consumer, count))

        def handler_failed(self, *, consumer: str, attempts: int) -> None:
            heard.append(attempts)

        def dead_lettered(self, *, consumer: str) -> None:
            heard.append("dead")

    changes = ChangeHandlers(engine, hooks=Noting())

    @changes.on(Task, name="picky", start="beginning", retry=AT_ONCE)
    async def picky(session: AsyncSession, change: Any) -> None:
        if change.key == {"id": 1}:
            raise RuntimeError("one")
        await record(session, change)

    await write(engine, 1, 2)
    async with changes:
        await until_handled(engine, 1)
    assert heard == [1, 2, 3, "dead", ("picky", 1)]


async def test_unknown_names_are_told_apart(engine: AsyncEngine) -> None:
    with pytest.raises(LookupError, match="no consumer 'nobody'"):
        await reset_consumer(engine, "nobody")
    with pytest.raises(LookupError, match="no consumer 'nobody'"):
        await drop_consumer(engine, "nobody")
    with pytest.raises(ValueError, match="is not a position"):
        await reset_consumer(engine, "nobody", "yesterday")


async def test_a_dropped_consumer_begins_anew(engine: AsyncEngine) -> None:
    await write(engine, 1)
    async with recording(engine):
        await until_handled(engine, 1)
    await drop_consumer(engine, "recorder")
    async with recording(engine):
        await until_handled(engine, 2)
    assert await effects(engine) == [(1, 0), (1, 0)]


async def test_a_role_that_may_work_needs_nothing_else(engine: AsyncEngine) -> None:
    connection = await connect(engine)
    await connection.execute("drop role if exists handler_role")
    await connection.execute("create role handler_role login")
    try:
        await connection.execute(
            "grant select, insert, update on tasks, effects to handler_role;"
            "grant usage on all sequences in schema public to handler_role;"
            "select rowsignal.grant_v1('handler_role', false, false, true)"
        )
        url = engine.url.set(username="handler_role")
        worker = sa.ext.asyncio.create_async_engine(url)
        await write(engine, 1)
        async with recording(worker):
            await until_handled(worker, 1)
        assert [lag.handled for lag in await consumer_lag(worker)] == [1]
        await close_listener(worker)
        await worker.dispose()
    finally:
        await connection.execute("drop owned by handler_role; drop role handler_role")
        await connection.close()
