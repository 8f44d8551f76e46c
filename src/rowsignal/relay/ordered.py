"""The messages of a stream from a sequence on, none of them twice and none out of order."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import NoReturn

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api
from nats.js.errors import Error as JetStreamError

logger = logging.getLogger("rowsignal.relay")

HEARTBEAT = 2.0
SILENCE = 3 * HEARTBEAT
IDLE_CONSUMER = 30.0  # seconds after which the server forgets a consumer that is not read
STALLED = "Nats-Consumer-Stalled"
STATUS = "Status"
PAGE = 1000
FETCH_TIMEOUT = 5.0

Handle = Callable[[int, Msg], Awaitable[None]]


class BrokenOrderError(ConnectionError):
    """Messages were lost between the server and this client: they are to be read again."""


class OrderedMessages:
    """A consumer of its own for one reader; `handle` is called with each sequence and message."""

    def __init__(self, client: Client, stream: str, handle: Handle) -> None:
        self._client = client
        self._stream = stream
        self._handle = handle
        self._taken = 0  # of this consumer's own count
        self._heard_at = 0.0
        self._broken = asyncio.Event()

    async def run(self, start: int) -> NoReturn:
        """Read from a sequence on; raise where the order is broken or the server is silent."""
        inbox = self._client.new_inbox()
        subscription = await self._client.subscribe(inbox, cb=self._take)
        try:
            self._heard_at = self._now()
            await self._client.jetstream().add_consumer(self._stream, _pushed(inbox, start))
            await self._watch()
        finally:
            await _end(self._client, subscription)

    async def _watch(self) -> NoReturn:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT):
                    await self._broken.wait()
            if self._broken.is_set():
                raise BrokenOrderError("Messages of NATS were lost on the way; reading again.")
            if self._now() - self._heard_at > SILENCE:
                raise TimeoutError(f"NATS was silent for {SILENCE:g} s.")

    async def _take(self, message: Msg) -> None:
        self._heard_at = self._now()
        headers = message.headers
        if headers is not None and STATUS in headers:
            await self._answer(message)
            return
        if self._broken.is_set():
            return
        place = message.metadata.sequence
        if place.consumer != self._taken + 1:
            self._broken.set()
            return
        self._taken += 1
        try:
            await self._handle(place.stream, message)
        except Exception:
            logger.exception("a message of NATS could not be taken; reading again")
            self._broken.set()

    async def _answer(self, message: Msg) -> None:
        """Let the server go on: it asks whether what it has sent was taken."""
        subject = message.reply or (message.headers or {}).get(STALLED)
        if subject:
            await self._client.publish(subject)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _pushed(inbox: str, start: int) -> api.ConsumerConfig:
    return api.ConsumerConfig(
        deliver_subject=inbox,
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=api.AckPolicy.NONE,
        max_deliver=1,
        flow_control=True,
        idle_heartbeat=HEARTBEAT,
        inactive_threshold=IDLE_CONSUMER,
        mem_storage=True,
        num_replicas=1,
    )


async def _end(client: Client, subscription: Subscription) -> None:
    if client.is_connected:
        await subscription.unsubscribe()


class PageReader:
    """Fetches messages that are there, a number at a time, with one request each.

    nats-py's own `fetch` may give one more than was asked for, and makes a task for each message.
    """

    def __init__(self, client: Client, next_subject: str) -> None:
        self._client = client
        self._next = next_subject
        self._inbox = client.new_inbox()
        self._wanted = 0
        self._messages: list[Msg] = []
        self._is_over = asyncio.Event()

    async def open(self) -> Subscription:
        """Begin to hear."""
        return await self._client.subscribe(self._inbox, cb=self._take)

    async def fetch(self, count: int) -> list[Msg]:
        """Return the next messages: fewer where the server says that there are no more."""
        self._wanted, self._messages = count, []
        self._is_over.clear()
        request = {"batch": count, "no_wait": True}
        await self._client.publish(self._next, json.dumps(request).encode(), self._inbox)
        async with asyncio.timeout(FETCH_TIMEOUT):
            await self._is_over.wait()
        return self._messages

    async def _take(self, message: Msg) -> None:
        if message.headers is not None and STATUS in message.headers:
            self._is_over.set()
            return
        self._messages.append(message)
        if len(self._messages) >= self._wanted:
            self._is_over.set()


@asynccontextmanager
async def pages(client: Client, stream: str, start: int) -> AsyncIterator[PageReader]:
    """Yield what fetches the messages from a sequence on, in order."""
    js = client.jetstream()
    config = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=start,
        ack_policy=api.AckPolicy.NONE,
        inactive_threshold=IDLE_CONSUMER,
        mem_storage=True,
        num_replicas=1,
    )
    name = (await js.add_consumer(stream, config)).name
    reader = PageReader(client, f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{name}")
    subscription = await reader.open()
    try:
        yield reader
    finally:
        await _end(client, subscription)
        if client.is_connected:
            with suppress(JetStreamError, TimeoutError):  # the server forgets it by itself
                await js.delete_consumer(stream, name)
