"""Each change once, whatever is killed, stopped or restarted."""

import asyncio
import os
import random
import signal
from collections import defaultdict
from contextlib import AsyncExitStack

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.handlers import consumer_lag
from rowsignal.listener import OUTAGES
from support.change_log import connect
from support.handlers import (
    Task,
    effects,
    make_tables,
    recording,
    until_handled,
    until_lag,
    write,
)
from support.waits import close_listener
from support.worker_processes import worker_process

CHANGES, TASKS = 2000, 50


async def write_steps(engine: AsyncEngine, seed: int, tasks: range) -> int:
    """Write steps of some tasks in transactions of several sizes; return how many."""
    chance, written = random.Random(seed), 0
    for task in tasks:
        await write(engine, task)
    for step in range(1, CHANGES // TASKS):
        async with engine.begin() as connection:
            for task in sorted(chance.sample(tasks, len(tasks))):
                await connection.execute(sa.update(Task).where(Task.id == task).values(step=step))
                written += 1
    return written + len(tasks)


@pytest.mark.timeout(180)
async def test_workers_are_killed_and_each_change_has_one_effect(engine: AsyncEngine) -> None:
    await make_tables(engine)
    chance = random.Random(3)
    async with AsyncExitStack() as stack:
        workers = [
            await stack.enter_async_context(worker_process(engine, partitions=4)) for _ in range(2)
        ]
        writing = [
            asyncio.create_task(write_steps(engine, seed, range(seed * 10, seed * 10 + 10)))
            for seed in range(TASKS // 10)
        ]
        for round_ in range(4):
            await until_handled(engine, (round_ + 1) * 300)
            victim = chance.choice(workers)
            await victim.kill()
            workers.remove(victim)
            workers.append(await stack.enter_async_context(worker_process(engine, partitions=4)))
        written = sum(await asyncio.gather(*writing))
        await until_handled(engine, written)
        for worker in workers:
            await worker.end()
    steps = defaultdict(list)
    for task, step in await effects(engine):
        steps[task].append(step)
    assert written == CHANGES
    assert len(steps) == TASKS
    for history in steps.values():
        assert history == list(range(CHANGES // TASKS)), "each once, in the order of the row"


async def test_a_worker_that_was_stopped_beyond_its_lease_commits_nothing(
    engine: AsyncEngine,
) -> None:
    await make_tables(engine)
    await write(engine, 1)
    async with worker_process(engine, stall=1) as stopped:
        await stopped.until("stalled")
        stopped.signal(signal.SIGSTOP)
        async with worker_process(engine) as other:
            await write(engine, 2)
            await until_handled(engine, 2)
            stopped.resume()
            await write(engine, 3)
            await until_handled(engine, 3)
            await other.end()
        await write(engine, 4)
        await until_handled(engine, 4)  # by the one that was stopped, under a lease of today
    assert await effects(engine) == [(1, 0), (2, 0), (3, 0), (4, 0)]


async def test_a_stopped_worker_does_not_hold_up_its_successor_by_its_locks(
    engine: AsyncEngine,
) -> None:
    await make_tables(engine)
    async with engine.begin() as connection:
        await connection.execute(sa.text("create unique index on effects (task_id)"))
    await write(engine, 1)
    async with worker_process(engine, stall=1) as stopped:
        await stopped.until("stalled")  # its effect is written, and not committed
        stopped.signal(signal.SIGSTOP)
        async with worker_process(engine):
            await until_handled(engine, 1)
        stopped.resume()
    assert await effects(engine) == [(1, 0)]


async def until_held_by(engine: AsyncEngine, count: int) -> None:
    """Return when all partitions are held, by so many workers."""
    holders: set[str | None] = set()
    async with asyncio.timeout(60):
        while len(holders) != count or None in holders:
            await asyncio.sleep(0.02)
            holders = {lag.holder for lag in await consumer_lag(engine)}


async def test_another_worker_takes_over_when_one_ends_and_shares_when_it_begins(
    engine: AsyncEngine,
) -> None:
    await make_tables(engine)
    async with (
        worker_process(engine, partitions=4, lease=60.0) as first,
        worker_process(engine, partitions=4, lease=3.0) as second,
    ):
        await until_held_by(engine, 2)
        await first.end()  # its lease of a minute is given back
        await until_held_by(engine, 1)
        await write(engine, *range(8))
        await until_handled(engine, 8)
        await second.end()
    assert sorted(await effects(engine)) == [(n, 0) for n in range(8)]


async def write_until(engine: AsyncEngine, stop: asyncio.Event) -> list[int]:
    """Write tasks until told to stop, whatever the server does; return the committed."""
    committed: list[int] = []
    task = 0
    while not stop.is_set():
        task += 1
        try:
            await write(engine, task)
        except OUTAGES:
            await asyncio.sleep(0.02)
        else:
            committed.append(task)
    return committed


@pytest.mark.timeout(120)
@pytest.mark.parametrize("is_crash", [False, True], ids=["restart", "crash"])
async def test_a_restart_or_a_crash_of_the_server_loses_and_repeats_nothing(
    is_crash: bool,
) -> None:
    with EmbeddedPostgres(settings={"fsync": "on"}) as server:
        engine = create_async_engine(server.url, pool_pre_ping=True)
        await make_tables(engine)
        stop = asyncio.Event()
        async with recording(engine, partitions=2):
            writing = asyncio.create_task(write_until(engine, stop))
            for round_ in range(3):
                await until_done(engine, (round_ + 1) * 30)
                if is_crash:
                    victim = await until_connected(engine)
                    os.kill(victim.get_server_pid(), signal.SIGKILL)
                    victim.terminate()
                else:
                    await asyncio.to_thread(server.restart)
            stop.set()
            committed = await writing
            await until_done(engine, len(committed))
            await until_lag(engine, lambda lag: lag.lag_changes == 0)
            found = await effects(engine)
            assert [lag.resets for lag in await consumer_lag(engine)] == [0, 0]
        await close_listener(engine)
        async with engine.connect() as connection:
            tasks = (await connection.scalars(sa.select(Task.id))).all()
        assert sorted(task for task, _ in found) == sorted(tasks), "each once"
        assert set(committed) <= set(tasks)
        await engine.dispose()


async def until_connected(engine: AsyncEngine) -> asyncpg.Connection:
    """Connect as soon as the server takes connections."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await connect(engine)
            except OUTAGES:
                await asyncio.sleep(0.05)


async def until_done(engine: AsyncEngine, count: int) -> None:
    """Return when so many effects are there; the server may be away meanwhile."""
    async with asyncio.timeout(60):
        while True:
            try:
                if len(await effects(engine)) >= count:
                    return
            except OUTAGES:
                await asyncio.sleep(0.05)  # the server is on its way down, or up
            await asyncio.sleep(0.05)
