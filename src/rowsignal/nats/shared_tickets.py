"""Tickets in NATS: each is taken once, whichever host is asked."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rowsignal.exceptions import UnavailableError
from rowsignal.nats.buckets import Bucket, Connection
from rowsignal.nats.connection import OUTAGES
from rowsignal.nats.subjects import tokens

BUCKET = "rowsignal-tickets"
LONGEST = 300.0  # seconds that a ticket can be good
AWAY = (
    "Tickets are kept in NATS, which does not answer just now: send the token itself, or come back"
    " in a moment."
)


class JetStreamTickets:
    """Stores unused tickets, by owner and digest; neither tells a principal or a ticket."""

    def __init__(self, connection: Connection, scope: str) -> None:
        self._bucket = Bucket(connection, BUCKET, ttl=LONGEST)
        self._scope = scope

    async def put(self, owner: str, digest: str, text: str) -> None:
        """Store a ticket."""
        async with _answering():
            await self._bucket.put(tokens(self._scope, owner, digest), text.encode())

    async def take(self, owner: str, digest: str) -> str | None:
        """Return and remove a ticket; None if there is none, or another process was first.

        The removal decides: it counts only if the ticket is still as it was read. Where it stays
        open whether it counted, the ticket is refused.
        """
        key = tokens(self._scope, owner, digest)
        async with _answering():
            found = await self._bucket.get(key)
            if found is None or await self._bucket.set(key, b"", found.revision) is None:
                return None
        with suppress(*OUTAGES):  # else the emptied key counts as open until it expires
            await self._bucket.forget(key)
        return found.value.decode()

    async def open_of(self, owner: str) -> int:
        """Return the number of stored tickets of an owner."""
        async with _answering():
            return len(await self._bucket.keys(tokens(self._scope, owner)))


@asynccontextmanager
async def _answering() -> AsyncIterator[None]:
    try:
        yield
    except OUTAGES as error:
        raise UnavailableError(AWAY) from error
