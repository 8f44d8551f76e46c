"""The publisher on NATS JetStream."""

import asyncio
import itertools
import json
import re
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import api
from nats.js.errors import NotFoundError

from rowsignal.nats.subjects import all_subjects, stream_name
from rowsignal.relay.messages import POSITION, Message
from rowsignal.relay.publisher import FencedError, Head

EXPECTED_SEQUENCE = "Nats-Expected-Last-Sequence"
EXPECTED_ID = "Nats-Expected-Last-Msg-Id"
WRONG_PLACE = frozenset({10070, 10071, 10164})  # wrong last message id, wrong last sequence (two)
SEQUENCE = re.compile(rb'"seq":\s*(\d+)')
STATUS = "Status"  # of an answer that nothing gave: no stream takes the subject just now


class RefusedError(ConnectionError):
    """JetStream did not store a message: it is full, electing a leader or not there."""


@dataclass(frozen=True, slots=True)
class Stored:
    """JetStream's acknowledgement of a message that it has stored, now or before."""

    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """The settings of a stream that does not exist yet: an existing stream stays as it is.

    `replicas` is 3 in a cluster that survives the loss of a node. Messages older than `max_age`
    seconds are discarded, and the oldest beyond `max_bytes`.
    """

    replicas: int = 1
    max_age: float = 3 * 24 * 3600.0
    max_bytes: int | None = None


class JetStreamPublisher:
    """Publishes to the one stream of a database."""

    def __init__(
        self, client: Client, database: str, settings: StreamSettings | None = None
    ) -> None:
        self.stream = stream_name(database)
        self._client = client
        self._database = database
        self._settings = settings or StreamSettings()
        self._js = client.jetstream()
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._numbers = itertools.count()
        self._waiting: dict[str, asyncio.Future[Stored]] = {}

    @property
    def max_bytes(self) -> int:
        """The largest size of a message in bytes."""
        return self._client.max_payload

    async def head(self) -> Head:
        """Return the end of the stream, which is made where there is none."""
        self._waiting = {it: future for it, future in self._waiting.items() if not future.done()}
        sequence = (await self._info()).state.last_seq
        if not sequence:
            return Head()
        try:
            last = await self._js.get_msg(self.stream, seq=sequence)
        except NotFoundError:  # it was discarded
            return Head(sequence)
        return Head(sequence, (last.headers or {}).get(POSITION))

    async def publish(
        self, message: Message, after: int, follows: str | None, *, is_acknowledged: bool
    ) -> asyncio.Future[Stored] | None:
        """Send a message that is stored only right after a sequence, and the id that it has."""
        headers = message.headers
        headers[EXPECTED_SEQUENCE] = str(after)
        if follows is not None:
            headers[EXPECTED_ID] = follows
        if not is_acknowledged:
            await self._client.publish(message.subject, message.payload, headers=headers)
            return None
        if not self._inbox:
            await self._listen()
        number = str(next(self._numbers))
        future = self._waiting[number] = asyncio.get_running_loop().create_future()
        reply = f"{self._inbox}.{number}"
        await self._client.publish(message.subject, message.payload, reply, headers)
        return future

    def forget(self, acknowledgement: asyncio.Future[Stored]) -> None:
        """Wait for a receipt no longer."""
        if not acknowledgement.cancel() and not acknowledgement.cancelled():
            acknowledgement.exception()  # has been seen

    async def close(self) -> None:
        """Hear of no receipt any more."""
        if self._subscription is not None and self._client.is_connected:
            await self._subscription.unsubscribe()

    async def _listen(self) -> None:
        # nats-py's own `publish_async` never tells of a message that was refused.
        self._inbox = self._client.new_inbox()
        self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._answered)

    async def _answered(self, answer: Msg) -> None:
        future = self._waiting.pop(answer.subject.rpartition(".")[2], None)
        if future is None or future.done():
            return
        try:
            future.set_result(_receipt(answer))
        except (FencedError, RefusedError) as error:
            future.set_exception(error)

    async def _info(self) -> api.StreamInfo:
        try:
            return await self._js.stream_info(self.stream)
        except NotFoundError:
            return await self._js.add_stream(self._config())

    def _config(self) -> api.StreamConfig:
        settings = self._settings
        limits: dict[str, Any] = {}
        if settings.max_bytes is not None:
            limits["max_bytes"] = settings.max_bytes
        return api.StreamConfig(
            name=self.stream,
            description=f"Row changes of the database {self._database}, by rowsignal.",
            subjects=all_subjects(self._database),
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.OLD,
            max_age=settings.max_age,
            num_replicas=settings.replicas,
            **limits,
        )


def _receipt(answer: Msg) -> Stored:
    """Read an acknowledgement (NATS, "JetStream wire API"); raise for what was not stored."""
    if answer.headers and STATUS in answer.headers:
        raise RefusedError("No JetStream takes the subject just now.")
    found = SEQUENCE.search(answer.data)
    if found is not None and b'"error"' not in answer.data:  # as for each message but a few
        return Stored(int(found[1]))
    error = json.loads(answer.data).get("error") or {}
    if error.get("err_code") in WRONG_PLACE:
        raise FencedError
    raise RefusedError(f"JetStream has refused a message: {error.get('description')}.")
