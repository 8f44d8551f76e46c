"""Connections that are thrown away while their event loop ends."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from rowsignal.postgres.connections import driver_of, throw_away

STEPS = 12  # of the event loop; closing takes fewer


async def end_all() -> None:
    """Cancel all other tasks and wait for them, as `asyncio.run` does at its end."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("is_lost", [False, True])
@pytest.mark.parametrize("step", range(STEPS))
async def test_a_loop_that_ends_leaves_no_connection(
    engine: AsyncEngine, step: int, is_lost: bool
) -> None:
    connection = await engine.connect()
    if is_lost:
        (await driver_of(connection)).terminate()
    begun = asyncio.Event()

    async def owner() -> None:
        begun.set()
        await throw_away(connection)

    owning = asyncio.create_task(owner())
    await begun.wait()
    for _ in range(step):
        await asyncio.sleep(0)
    await end_all()
    assert owning.done()
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
