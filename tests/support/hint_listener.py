"""A listener for tests: arms tables as the product does, and receives the hints."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import asyncpg
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.payload import CHANNEL, LOCK_CLASS, LOG_BUCKET, LOG_CHANNEL
from rowsignal.triggers import captures

numbers = count()


def plain_url(engine: AsyncEngine) -> str:
    url = engine.url.set(drivername="postgresql")
    return url.render_as_string(hide_password=False)


@asynccontextmanager
async def connected(engine: AsyncEngine, **options: Any) -> AsyncIterator[asyncpg.Connection]:
    """Connect with the plain driver, which runs scripts of several statements."""
    connection = await asyncpg.connect(plain_url(engine), **options)
    try:
        yield connection
    finally:
        await connection.close()


class HintListener:
    """Receives the hints of the armed tables, in commit order.

    With `tokens`, of these tables alone: others may be armed by the same of the 128 locks.
    """

    def __init__(self, connection: asyncpg.Connection, speaker: asyncpg.Connection) -> None:
        self.connection = connection
        self.speaker = speaker
        self.received: list[dict[str, Any]] = []
        self.wakes = 0
        self.tokens: set[str] = set()
        self._marks: dict[str, asyncio.Event] = {}

    def _on_hint(self, *notification: Any) -> None:
        payload = notification[-1]
        if payload in self._marks:
            self._marks[payload].set()
        else:
            assert len(payload.encode()) < 8000
            self.received.append(json.loads(payload, parse_float=str))

    def _on_wake(self, *_: Any) -> None:
        self.wakes += 1

    async def start(self) -> None:
        await self.connection.add_listener(CHANNEL, self._on_hint)
        await self.connection.add_listener(LOG_CHANNEL, self._on_wake)

    async def arm(self, bucket: int = LOG_BUCKET) -> None:
        await self.connection.execute(f"SELECT pg_advisory_lock_shared({LOCK_CLASS}, {bucket})")

    async def disarm(self, bucket: int = LOG_BUCKET) -> None:
        await self.connection.execute(f"SELECT pg_advisory_unlock_shared({LOCK_CLASS}, {bucket})")

    async def settle(self) -> None:
        """Return when everything committed before this call has been received."""
        mark = f"mark {next(numbers)}"
        self._marks[mark] = asyncio.Event()
        await self.speaker.execute(f"NOTIFY {CHANNEL}, '{mark}'")
        async with asyncio.timeout(30):
            await self._marks[mark].wait()

    async def hints(self) -> list[dict[str, Any]]:
        """Return the hints since the last call, without token and transaction."""
        await self.settle()
        received, self.received = self.received, []
        return [hint for hint in received if not self.tokens or hint["t"] in self.tokens]

    async def said(self) -> list[tuple[Any, ...]]:
        """Return (operation, key, changed) of the hints since the last call."""
        return [(hint["o"], hint.get("k"), hint.get("c")) for hint in await self.hints()]


@asynccontextmanager
async def listening(
    engine: AsyncEngine, *tables: str | tuple[str, str]
) -> AsyncIterator[HintListener]:
    """Receive the hints of tables, as "name", "schema.name" or (schema, name)."""
    async with connected(engine) as connection, connected(engine) as speaker:
        hint_listener = HintListener(connection, speaker)
        await hint_listener.start()
        async with engine.connect() as asking:
            names = [
                (table.rpartition(".")[0] or None, table.rpartition(".")[2])
                if isinstance(table, str)
                else table
                for table in tables
            ]
            found = await captures(asking, names)
        hint_listener.tokens = {token for capture in found for token, _ in capture.channels}
        for bucket in {bucket for capture in found for _, bucket in capture.channels}:
            await hint_listener.arm(bucket)
        yield hint_listener


def database_of(engine: AsyncEngine) -> str:
    return str(make_url(plain_url(engine)).database)
