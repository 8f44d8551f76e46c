"""Work that runs while it is used: an application that is mounted hears of no start and no end."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from rowsignal.listener import OUTAGES

logger = logging.getLogger("rowsignal.service")


class OnDemand:
    """Keeps something open from its first use until it was idle for a while, or is told to stop.

    It is open in a task of its own, so it is also closed when the event loop ends: that cancels
    what still runs, and waits for it.
    """

    def __init__(
        self,
        running: Callable[[], AbstractAsyncContextManager[None]],
        *,
        idle_timeout: float,
        is_over: Callable[[], bool],
    ) -> None:
        self._running = running
        self._idle_timeout = idle_timeout
        self._is_over = is_over
        self._users = 0
        self._touched = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Tell whether it is open, or about to be."""
        return self._task is not None and not self._task.done()

    @contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open for the length of a block, and for the idle timeout after it."""
        if not self.is_running and not self._is_over():
            self._task = asyncio.create_task(self._run(), name="rowsignal dashboard")
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            self._touched.set()

    async def ended(self) -> None:
        """Wait until it is closed, for want of use."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Close it now."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            async with self._running():
                await self._idle()
        except OUTAGES as error:
            logger.warning("the dashboard could not be closed in order: %s", type(error).__name__)

    async def _idle(self) -> None:
        """Wait until there was no use for as long as the idle timeout."""
        is_idle = False
        while not is_idle:
            self._touched.clear()
            try:
                async with asyncio.timeout(self._idle_timeout):
                    await self._touched.wait()
            except TimeoutError:
                is_idle = not self._users
