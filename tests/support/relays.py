"""Relays in the test's own event loop, and what they have put into the stream."""

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import api
from nats.js.errors import NotFoundError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.relay import Relay, RelayTimings, stream_name
from support.change_log import Shop
from support.wal import WalShop

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
                except (NatsError, NotFoundError):
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


@dataclass
class RelayProcess:
    """A `rowsignal relay` of its own, which tests kill, stop and continue."""

    process: asyncio.subprocess.Process

    async def until(self, words: str) -> None:
        """Return when the relay has logged some words."""
        assert self.process.stderr is not None
        async with asyncio.timeout(PATIENCE):
            while line := await self.process.stderr.readline():
                if words.encode() in line:
                    return
        raise AssertionError(f"the relay ended before it said {words!r}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def peak_memory(self) -> int:
        """Return the most bytes that it has had in memory (proc(5), VmHWM)."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None
        return int(found[1]) * 1024

    async def kill(self) -> None:
        """Kill without a warning, also where it is stopped."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def relay_process(
    engine: AsyncEngine, nats: str, *options: str
) -> AsyncIterator[RelayProcess]:
    """Run `rowsignal relay` for the length of a block."""
    url = engine.url.render_as_string(hide_password=False)
    command = Path(sys.executable).with_name("rowsignal")
    given = ("relay", "--nats", nats, "--url", url, *options)
    process = await asyncio.create_subprocess_exec(
        str(command), *given, stderr=asyncio.subprocess.PIPE
    )
    relay = RelayProcess(process)
    try:
        yield relay
    finally:
        await relay.kill()


ROWS = 25
WRITERS = 4


@dataclass
class Load:
    """Writers that count rows up, each its own rows: what is stored of a row is 1, 2, 3 ..."""

    shop: Shop | WalShop
    rounds: int
    written: int = 0

    async def prepare(self) -> None:
        """Insert the rows."""
        await self.shop.insert(*range(ROWS * WRITERS))

    async def run(self, during: Callable[[], Awaitable[None]] | None = None) -> None:
        """Write all rounds; after a third of them do something else beside."""
        reached = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number, reached))
            if during is not None:
                await reached.wait()
                await during()

    async def _write(self, number: int, reached: asyncio.Event) -> None:
        connection = await self.shop.connect()
        first = number * ROWS
        for done in range(self.rounds):
            # Whole ranges and single rows by turns: windows of many sizes overlap.
            if done % 2:
                await connection.execute(
                    "update item set v = v + 1 where id between $1 and $2", first, first + ROWS - 1
                )
            else:
                async with connection.transaction():
                    for id_ in range(first, first + ROWS):
                        await connection.execute("update item set v = v + 1 where id = $1", id_)
            self.written += ROWS
            if done >= self.rounds // 3:
                reached.set()

    @property
    def changes(self) -> int:
        """How many changes there are in all."""
        return ROWS * WRITERS * (self.rounds + 1)

    def check(self, stored: Sequence[Stored]) -> None:
        """Fail where a change is missing, doubled or out of order."""
        found: dict[int, list[int]] = {}
        for message in stored:
            found.setdefault(message.id, []).append(message.body["row"]["v"])
        expected = list(range(self.rounds + 1))
        assert found == dict.fromkeys(range(ROWS * WRITERS), expected)
