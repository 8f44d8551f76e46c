"""Supervision of the service's tasks."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from rowsignal.hooks import Hooks
from rowsignal.listener import reconnect_delays

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
