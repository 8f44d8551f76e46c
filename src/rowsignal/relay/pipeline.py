"""Messages in flight: many at once, each acknowledged in its order, or all of them in doubt."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NoReturn

from rowsignal.relay.messages import Message
from rowsignal.relay.publisher import Acknowledgement, FencedError, Head, Publisher, Receipt

LIMIT = 2000
REPORT = 500  # acknowledgements between two reports, where there are as many at once

Report = Callable[[int, Message], None]


class Pipeline:
    """Publishes one message after another without waiting for each.

    Where one fails, nothing is known of those after it: the end of the stream says where to go on.
    """

    def __init__(
        self,
        publisher: Publisher,
        head: Head,
        *,
        timeout: float,
        report: Report,
        limit: int = LIMIT,
    ) -> None:
        """Go on after the end of a stream.

        `report` is told how many messages are stored, and which was the last of them.
        """
        self.sequence = self._stored = head.sequence
        self._publisher = publisher
        self._timeout = timeout
        self._report = report
        self._limit = limit
        self._last_id: str | None = None  # None where the last message is known to be stored
        self._flying: deque[tuple[Acknowledgement, Message]] = deque()
        self._sent = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def max_bytes(self) -> int:
        """The largest size of a message in bytes."""
        return self._publisher.max_bytes

    async def send(self, message: Message) -> None:
        """Publish a message; wait only while too many are in flight."""
        while len(self._flying) >= self._limit:
            self._settled.clear()
            await self._settled.wait()
        follows = self._last_id if self._flying else None
        acknowledgement = await self._publisher.publish(message, self.sequence, follows)
        self.sequence += 1
        self._last_id = message.id
        self._flying.append((acknowledgement, message))
        self._sent.set()

    async def collect(self) -> NoReturn:
        """Take the acknowledgements as they come; raise when one does not, or says no."""
        stored, count = self._stored, 0
        while True:
            while not self._flying:
                self._sent.clear()
                await self._sent.wait()
            acknowledgement, message = self._flying[0]
            receipt = await self._receipt(acknowledgement)
            stored += 1
            if receipt.seq != stored:
                raise FencedError
            self._flying.popleft()
            self._settled.set()
            count += 1
            if not self._flying or count >= REPORT:
                self._report(count, message)
                count = 0

    async def _receipt(self, acknowledgement: Acknowledgement) -> Receipt:
        if not acknowledgement.done():
            await asyncio.wait([acknowledgement], timeout=self._timeout)
        if not acknowledgement.done():
            raise TimeoutError(f"A message was not acknowledged within {self._timeout:g} s.")
        receipt: Receipt = acknowledgement.result()
        return receipt

    def close(self) -> None:
        """Wait for nothing any more."""
        while self._flying:
            acknowledgement, _ = self._flying.popleft()
            self._publisher.forget(acknowledgement)
