"""Waits for tests that do things to them: begun, armed, and rid of all that could hide a loss."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.dispatcher import Dispatcher
from rowsignal.dispatcher.table_watch import TableWatch
from rowsignal.listener.pacing import Pace
from rowsignal.waiting import wait_for_row_change

Model = TypeVar("Model")

NEVER = 3600.0  # so that neither the safety look nor polling can hide a lost hint
NOTIFIED_ONLY = Pace(safety=NEVER)  # no read without a notification
READ_OFTEN = Pace(safety=0.2, recheck=0.2)


def begin_wait(
    engine: AsyncEngine, model: type[Model], key: Any, **options: Any
) -> asyncio.Task[Model]:
    """Wait for a row in a task, by default without polling in between."""
    options = {"interval": NEVER, "timeout": 60} | options
    return asyncio.create_task(wait_for_row_change(engine, model, key, **options))


async def until_mode(engine: AsyncEngine, *modes: str, table: str = "orders") -> TableWatch:
    """Return when all waits have seen their rows and the table is watched in one of the modes."""
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.005)
            waits = [wait for rows in Dispatcher.of(engine).rows for wait in rows]
            watched = Dispatcher.of(engine).tables.get((None, table))
            is_seen = all(wait.baseline is not None for wait in waits)
            if is_seen and watched is not None and watched.watch.mode in modes:
                return watched.watch


async def until_listening(engine: AsyncEngine, mode: str) -> None:
    """Return when the engine's listener is in a mode: `listening` or `polling`."""
    async with asyncio.timeout(30):
        while Dispatcher.of(engine).listener.state.mode != mode:
            await asyncio.sleep(0.005)


async def until_equal(read: Callable[[], Awaitable[object]], wanted: object) -> None:
    """Return when what is read is as wanted; a server process is slow to see its client leave."""
    found = None
    for _ in range(1_500):
        if (found := await read()) == wanted:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{found!r} does not become {wanted!r}")


async def close_listener(engine: AsyncEngine) -> None:
    """Stop what waits have started for an engine."""
    await Dispatcher.of(engine).listener.close()
