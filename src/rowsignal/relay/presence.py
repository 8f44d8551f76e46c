"""Presence: the active relay of a database announces itself repeatedly, and the others stand by.

This decides only which one tries. That no message is stored twice or out of order is decided by
the stream, which takes each only at its very place.
"""

import asyncio
import uuid
from collections.abc import Callable
from typing import NoReturn

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from rowsignal.nats.subjects import presence_subject
from rowsignal.relay.timings import RelayTimings

LAG = "Rowsignal-Lag"
FIRST_PAUSES = 1.5  # of `presence`, before a relay that has just begun takes the others for gone


class StandbyRequiredError(Exception):
    """Another relay is at work."""


class Presence:
    """Tells the other relays of a database of this one, and hears them."""

    def __init__(self, client: Client, database: str, timings: RelayTimings) -> None:
        self.id = uuid.uuid4().hex
        self._client = client
        self._subject = presence_subject(database)
        self._timings = timings
        self._other = ""
        self._heard_at = 0.0
        self._subscription: Subscription | None = None

    async def open(self) -> None:
        """Begin to hear other relays."""
        self._subscription = await self._client.subscribe(self._subject, cb=self._heard)
        first = FIRST_PAUSES * self._timings.presence
        self._heard_at = self._now() - self._timings.takeover + first

    async def close(self) -> None:
        """Hear others no longer."""
        if self._subscription is not None and not self._client.is_closed:
            await self._subscription.unsubscribe()

    async def silence(self) -> None:
        """Wait until no other relay has said for a while that it is at work."""
        left = self._left()
        while left > 0:
            await asyncio.sleep(left)
            left = self._left()

    async def announce(self, lag: Callable[[], float] = lambda: 0.0) -> NoReturn:
        """Say that this relay is at work; raise `StandbyRequiredError` once another is meant to be.

        `lag` is asked each time, for those that watch relays.

        Of two at work the one with the lesser id goes on. A process that was stopped for a while
        has been replaced meanwhile.
        """
        said_at = self._now()
        while True:
            now = self._now()
            if now - said_at > self._timings.takeover:
                self._heard_at = now
                raise StandbyRequiredError
            if self._hears_other(now) and self._other < self.id:
                raise StandbyRequiredError
            headers = {LAG: f"{lag():.3f}"}
            await self._client.publish(self._subject, self.id.encode(), headers=headers)
            said_at = now
            await asyncio.sleep(self._timings.presence)

    def _left(self) -> float:
        return self._heard_at + self._timings.takeover - self._now()

    def _hears_other(self, now: float) -> bool:
        return bool(self._other) and now - self._heard_at < self._timings.takeover

    async def _heard(self, message: Msg) -> None:
        other = message.data.decode("ascii", "replace")
        if other != self.id:
            self._other, self._heard_at = other, self._now()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
