"""`JetStreamLimits`: what the processes of one database share in NATS, and which of them live."""

import asyncio
import json
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, Self

from nats.aio.client import Client
from nats.js.errors import NotFoundError

from rowsignal.nats.buckets import TIMEOUT, Bucket, NatsAwayError
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.nats.shared_readers import JetStreamReaderCounts
from rowsignal.nats.shared_tickets import JetStreamTickets
from rowsignal.nats.subjects import stream_name, token, tokens

BUCKET = "rowsignal-processes"
LEASE = 15.0
BEATS = 4  # in the length of a lease
FRESH = 0.5  # seconds that a list of living processes is taken for true
AWAY_PAUSE = 0.5
STEP_TIMEOUT = 10.0

logger = logging.getLogger("rowsignal.limits")


class JetStreamLimits:
    """Counts the readers of a principal, keeps tickets and lists streams over many processes.

        limits = JetStreamLimits("nats://localhost:4222", "shop")
        router = create_sse_router(source=source, tables={Order: OrderOut}, shared=limits)

    `scope` is a name that the processes have in common: that of the database. A process says again
    and again that it is alive; one that does not is forgotten after the lease (`lease` seconds; the
    process that makes the bucket decides), and its readers' places are free.
    """

    def __init__(
        self, nats: str | Client, scope: str, *, lease: float = LEASE, replicas: int | None = None
    ) -> None:
        self.streams: Callable[[], Sequence[Mapping[str, Any]]] = tuple
        self._nats = nats
        self._scope = scope
        self._replicas = replicas
        self._client: Client | None = None
        self._process = secrets.token_hex(8)
        self._key = tokens(scope, self._process)
        self._revision = 0
        self._processes = Bucket(self, BUCKET, ttl=lease)
        self._alive: frozenset[str] = frozenset()
        self._asked_at = 0.0
        self._beat_due = 0.0
        self.readers = JetStreamReaderCounts(self, scope, self._process, self._living)
        self.tickets = JetStreamTickets(self, scope)
        self._task: asyncio.Task[NoReturn] | None = None

    async def __aenter__(self) -> Self:
        """Begin to connect, and wait for NATS no longer than a moment."""
        is_ready = asyncio.Event()
        self._task = asyncio.create_task(self._run(is_ready), name="rowsignal shared limits")
        with suppress(TimeoutError):
            async with asyncio.timeout(TIMEOUT):
                await is_ready.wait()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def client(self) -> Client:
        """Return the client; raise `NatsAwayError` while it is not connected."""
        if self._client is None or not self._client.is_connected:
            raise NatsAwayError("NATS is not connected just now")
        return self._client

    async def replicas(self) -> int:
        """Return the number of copies of a bucket: as many as the relay's stream has."""
        if self._replicas is not None:
            return self._replicas
        try:
            js = self.client().jetstream(timeout=TIMEOUT)
            info = await js.stream_info(stream_name(self._scope))
        except NotFoundError:
            return 1
        return info.config.num_replicas or 1

    async def others(self) -> Sequence[Mapping[str, Any]]:
        """Return what other processes last said of themselves; nothing while NATS is away."""
        try:
            keys = await self._processes.keys(token(self._scope))
            found = [await self._processes.get(key) for key in keys if key != self._key]
        except OUTAGES:
            return ()
        return [said for it in found if it is not None and (said := _said(it.value)) is not None]

    async def _run(self, is_ready: asyncio.Event) -> NoReturn:
        while True:
            try:
                async with connected(self._nats, "rowsignal limits") as client:
                    await self._use(client, is_ready)
            except Exception as error:  # noqa: BLE001 -- told: no task ends unseen
                self._tell(error)
                await asyncio.sleep(AWAY_PAUSE)

    async def _use(self, client: Client, is_ready: asyncio.Event) -> NoReturn:
        self._client = client
        try:
            await self._keep(is_ready)
        finally:
            await self._leave()
            self._client = None

    async def _keep(self, is_ready: asyncio.Event) -> NoReturn:
        """Announce this process repeatedly, and write what has changed."""
        while True:
            try:
                async with asyncio.timeout(STEP_TIMEOUT):  # not all of nats-py's waits have one
                    await self._step()
                is_ready.set()
            except Exception as error:  # noqa: BLE001 -- as above
                self._tell(error)
                await asyncio.sleep(AWAY_PAUSE)
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(self._beat_due - time.monotonic(), 0)):
                    await self.readers.dirty.wait()

    async def _step(self) -> None:
        if time.monotonic() >= self._beat_due:
            interval = await self._processes.ttl() / BEATS
            await self._beat()
            self._beat_due = time.monotonic() + interval
        await self.readers.settle()

    def _tell(self, error: Exception) -> None:
        if not isinstance(error, OUTAGES):
            logger.error("shared limits have failed, and are taken up again", exc_info=error)
        self.readers.note_outage(error)
        self._beat_due = 0.0

    async def _beat(self) -> None:
        """Renew the lease; where it has ended, others have taken this process's places for free."""
        streams = list(self.streams())
        said = {"pid": os.getpid(), "host": socket.gethostname(), "streams": streams}
        value = json.dumps(said).encode()
        renewed = await self._processes.set(self._key, value, self._revision)
        if renewed is None:
            renewed = await self._processes.put(self._key, value)
            self.readers.forget_stored()
        self._revision = renewed

    async def _living(self, is_anew: bool) -> frozenset[str]:
        """Return the ids of the processes whose lease has not ended."""
        if is_anew or time.monotonic() - self._asked_at > FRESH:
            keys = await self._processes.keys(token(self._scope))
            self._alive = frozenset(key.rpartition(".")[2] for key in keys)
            self._asked_at = time.monotonic()
        return self._alive

    async def _leave(self) -> None:
        """End the lease at once, so that nothing waits for it."""
        with suppress(*OUTAGES):
            async with asyncio.timeout(TIMEOUT):
                await self._processes.forget(self._key)


def _said(value: bytes) -> Mapping[str, Any] | None:
    """Return what a process has said; None for what is not of this form."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    is_whole = isinstance(found, dict) and isinstance(found.get("streams"), list)
    return found if is_whole else None
