"""The messages of a stream from a sequence on, none of them twice and none out of order."""

import asyncio
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
Fetch = Callable[[int], Awaitable[list[Msg]]]


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


@asynccontextmanager
async def pages(client: Client, stream: str, start: int) -> AsyncIterator[Fetch]:
    """Yield what fetches the next messages from a sequence on, up to a number at a time."""
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
    reading = await js.pull_subscribe_bind(consumer=name, stream=stream)

    async def fetch(count: int) -> list[Msg]:
        return await reading.fetch(count, timeout=FETCH_TIMEOUT)

    try:
        yield fetch
    finally:
        if client.is_connected:
            await reading.unsubscribe()
            with suppress(JetStreamError, TimeoutError):  # the server forgets it by itself
                await js.delete_consumer(stream, name)
