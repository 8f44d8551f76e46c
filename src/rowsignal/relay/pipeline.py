"""Messages in flight: many at once, acknowledged in their order, or all of them in doubt."""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from rowsignal.relay.messages import Message
from rowsignal.relay.publisher import Acknowledgement, FencedError, Head, Publisher, Receipt

LIMIT = 2000
RUN = 100  # messages that are sent before one is acknowledged, at most
REPORT = 500  # messages between two reports, where as many are acknowledged at once

Report = Callable[[int, Message], None]


@dataclass(frozen=True, slots=True)
class Flight:
    """A message whose acknowledgement is awaited, and the sequence that it is meant for."""

    acknowledgement: Acknowledgement
    message: Message
    sequence: int


class Pipeline:
    """Publishes one message after another without waiting for each.

    JetStream stores a message only behind the one before it. An acknowledgement therefore covers
    all messages before it, and after a refused message all later ones are refused: only the last
    message of a run asks for an acknowledgement. A refusal of that one says only that it is out of
    place. The first message of a pipeline asks, too: when it is the refused one of the pipeline
    before, the answer has the reason.

    Where one fails, nothing is known of those after it: the end of the stream says where to go on.
    """

    def __init__(
        self,
        publisher: Publisher,
        head: Head,
        *,
        timeout: float,
        report: Report,
    ) -> None:
        """Go on after the end of a stream.

        `report` is told how many messages are stored, and which was the last of them.
        """
        self.sequence = self._stored = head.sequence
        self._publisher = publisher
        self._timeout = timeout
        self._report = report
        self._last_id: str | None = None  # None before the first message
        self._flying: deque[Flight] = deque()
        self._sent = asyncio.Event()
        self._settled = asyncio.Event()

    @property
    def max_bytes(self) -> int:
        """The largest size of a message in bytes."""
        return self._publisher.max_bytes

    async def send(self, message: Message, *, is_last: bool = True) -> None:
        """Publish a message; wait only while too many are in flight.

        The acknowledgement of a later message covers one that is not the last of its run.
        """
        while self.sequence - self._stored >= LIMIT:
            self._settled.clear()
            await self._settled.wait()
        follows = self._last_id if self.sequence > self._stored else None
        acknowledgement = await self._publisher.publish(
            message, self.sequence, follows, is_acknowledged=is_last or self._is_run_over()
        )
        self.sequence += 1
        self._last_id = message.id
        if acknowledgement is not None:
            self._flying.append(Flight(acknowledgement, message, self.sequence))
            self._sent.set()

    def _is_run_over(self) -> bool:
        asked = self._flying[-1].sequence if self._flying else self._stored
        return self._last_id is None or self.sequence - asked >= RUN

    async def collect(self) -> NoReturn:
        """Take the acknowledgements as they come; raise when one does not, or says no."""
        count = 0
        while True:
            while not self._flying:
                self._sent.clear()
                await self._sent.wait()
            flight = self._flying[0]
            receipt = await self._receipt(flight.acknowledgement)
            if receipt.seq != flight.sequence:
                raise FencedError
            self._flying.popleft()
            count += flight.sequence - self._stored
            self._stored = flight.sequence
            self._settled.set()
            if not self._flying or count >= REPORT:
                self._report(count, flight.message)
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
            self._publisher.forget(self._flying.popleft().acknowledgement)
