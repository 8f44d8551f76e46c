"""Relays in the test's own event loop, and what they have put into the stream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.js import api
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.relay import Relay, RelayTimings, stream_name

PATIENCE = 60.0
QUICK = RelayTimings(presence=0.1, takeover=0.5, acknowledgement=2.0)


@dataclass
class Stored:
    """One message of the stream."""

    sequence: int
    subject: str
    body: dict[str, Any]
    headers: dict[str, str]

    @property
    def operation(self) -> str:
        return str(self.body["operation"])

    @property
    def id(self) -> Any:
        """The value of the key's column `id`."""
        return (self.body.get("key") or {}).get("id")


@asynccontextmanager
async def relaying(engine: AsyncEngine, nats: str | Client, **options: Any) -> AsyncIterator[Relay]:
    """Run a relay for the length of a block; fail with it."""
    options.setdefault("timings", QUICK)
    relay = Relay(engine, nats, **options)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
    finally:
        if task.done():
            await task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class StreamReader:
    """Reads a database's stream from its beginning, as any program would."""

    def __init__(self, client: Client, database: str) -> None:
        self.messages: list[Stored] = []
        self.stream = stream_name(database)
        self._js = client.jetstream(timeout=10)
        self._subscription: Any = None

    async def open(self) -> None:
        """Wait for the stream, which the first relay makes."""
        async with asyncio.timeout(PATIENCE):
            while self._subscription is None:
                try:
                    await self._js.stream_info(self.stream)
                except Exception:
                    await asyncio.sleep(0.05)
                else:
                    self._subscription = await self._js.subscribe(
                        "rowsignal.>",
                        stream=self.stream,
                        ordered_consumer=True,
                        deliver_policy=api.DeliverPolicy.ALL,
                    )

    async def next(self) -> Stored:
        """Return the next message."""
        if self._subscription is None:
            await self.open()
        found = await self._subscription.next_msg(timeout=PATIENCE)
        sequence = found.metadata.sequence.stream
        stored = Stored(sequence, found.subject, json.loads(found.data), dict(found.headers or {}))
        self.messages.append(stored)
        return stored

    async def changes(self, count: int) -> list[Stored]:
        """Return the next changes, some of them; fail on a reset."""
        found: list[Stored] = []
        while len(found) < count:
            message = await self.next()
            assert message.operation != "reset", message
            if message.operation != "checkpoint":
                found.append(message)
        return found

    async def until(self, operation: str) -> Stored:
        """Return the next message of an operation."""
        while True:
            message = await self.next()
            if message.operation == operation:
                return message
