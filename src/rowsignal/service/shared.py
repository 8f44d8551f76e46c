"""Answers that cost the database something: one question at a time, for all that ask."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

Result = TypeVar("Result")


class SharedAnswer(Generic[Result]):
    """Keeps an answer for `keep` seconds; a question takes at most `timeout` seconds."""

    def __init__(
        self, ask: Callable[[], Awaitable[Result]], *, keep: float, timeout: float
    ) -> None:
        self._ask = ask
        self._keep = keep
        self._timeout = timeout
        self._turn = asyncio.Lock()
        self._answer: tuple[float, Result] | None = None

    async def get(self, *, max_age: float | None = None) -> Result:
        """Return an answer of the last `max_age` (or `keep`) seconds.

        Raises what the question raises, and `TimeoutError`.
        """
        oldest = self._keep if max_age is None else max_age
        began = time.monotonic()
        async with self._turn:
            if self._answer is not None and began - self._answer[0] <= oldest:
                return self._answer[1]
            async with asyncio.timeout(self._timeout):
                answer = await self._ask()
            self._answer = time.monotonic(), answer
            return answer
