"""The interface of the message broker that a relay publishes to."""

import asyncio
from dataclasses import dataclass
from typing import Any, Protocol

from rowsignal.relay.messages import Message


class FencedError(Exception):
    """Another message took the place that this one was meant for."""


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a stream: the last message's sequence, and the position that it carries.

    `position` is None where there is no such message; with a sequence above 0 there was one.
    """

    sequence: int = 0
    position: str | None = None


class Receipt(Protocol):
    """The acknowledgement of a message: its sequence, or that of an earlier one of its id."""

    @property
    def seq(self) -> int:
        """The sequence."""


Acknowledgement = asyncio.Future[Any]  # of a `Receipt`; of `FencedError`, or of what went wrong


class Publisher(Protocol):
    """Stores messages in the order of their sequences, each only at its very place."""

    @property
    def max_bytes(self) -> int:
        """The largest size of a message in bytes."""

    async def head(self) -> Head:
        """Return the end of the stream, which is made where there is none."""

    async def publish(
        self, message: Message, after: int, follows: str | None, *, is_acknowledged: bool
    ) -> Acknowledgement | None:
        """Send a message that is stored only right after a sequence.

        `follows`, the id of the message of that sequence, is given while it is not known to be
        stored: a number alone would also fit behind a message of another relay. Without an
        acknowledgement of its own a message costs less; that of a later one covers it.
        """

    def forget(self, acknowledgement: Acknowledgement) -> None:
        """Wait for a receipt no longer."""
