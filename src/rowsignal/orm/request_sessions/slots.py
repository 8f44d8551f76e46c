"""Slots: a limit for the sessions of one block, so that it cannot exhaust the pool."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from rowsignal.exceptions import PoolTimeoutError


class Slots:
    """Counts places; a task without a place waits in a queue.

    `limit` None means no limit. `describe` returns the pool's numbers, for errors.
    """

    def __init__(self, limit: int | None, describe: Callable[[], dict[str, Any]]) -> None:
        self.limit = limit
        self._describe = describe
        self.taken = 0
        self._waiters: deque[asyncio.Future[None]] = deque()

    def take_now(self) -> bool:
        """Take a place if there is one, without waiting."""
        if self.limit is not None and self.taken >= self.limit:
            return False
        self.taken += 1
        return True

    async def take(self, timeout: float | None = None) -> None:
        """Wait for a place; raise `PoolTimeoutError` after `timeout` seconds."""
        # In the order of arrival: no task overtakes those that wait.
        if not self._waiters and self.take_now():
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(timeout) as deadline:
                await waiter
        except BaseException as error:
            self._withdraw(waiter)
            if isinstance(error, TimeoutError) and deadline.expired():
                raise PoolTimeoutError(
                    f"None of the block's {self.limit} sessions became free within {timeout} s.",
                    timeout=timeout,
                    pool_status=self._describe(),
                ) from None
            raise

    def give(self) -> None:
        """Pass a place to the first task in the queue, or return it."""
        while self._waiters:
            waiter = self._waiters.popleft()
            # It may have been cancelled, and has not left the queue yet.
            if not waiter.done():
                waiter.set_result(None)
                return
        self.taken -= 1

    def _withdraw(self, waiter: asyncio.Future[None]) -> None:
        # A place that was handed over while its taker was being cancelled goes to the next one.
        if waiter.done() and not waiter.cancelled():
            self.give()
        elif waiter in self._waiters:
            self._waiters.remove(waiter)
