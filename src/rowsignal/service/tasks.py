"""Supervision of the service's tasks."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial

from rowsignal.hooks import Hooks
from rowsignal.listener import reconnect_delays
from rowsignal.sse.http.shutdown import end_in_time

logger = logging.getLogger("rowsignal.service")


async def keep_running(name: str, work: Callable[[], Awaitable[None]], hooks: Hooks) -> None:
    """Run `work` until cancelled; log and count a failure, then start again."""
    delays = reconnect_delays()
    while True:
        reason = "ended"
        try:
            await work()
        except Exception as error:
            reason = type(error).__name__
            logger.exception("a task of the service failed and is started again: %s", name)
        hooks.task_restarted(task=name, reason=reason)
        await asyncio.sleep(next(delays))


@asynccontextmanager
async def running_task(
    name: str, work: Callable[[], Awaitable[None]], hooks: Hooks
) -> AsyncIterator[None]:
    """Keep `work` running in a task for the length of a block."""
    task = asyncio.create_task(keep_running(name, work, hooks), name=f"rowsignal service {name}")
    try:
        yield
    finally:
        task.cancel()
        await end_in_time(partial(asyncio.gather, task, return_exceptions=True))
