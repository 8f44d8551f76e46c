"""The publisher on NATS JetStream."""

import asyncio
from dataclasses import dataclass
from typing import Any

from nats.aio.client import Client
from nats.js import api
from nats.js.errors import APIError, NotFoundError

from rowsignal.relay.messages import POSITION, Message
from rowsignal.relay.publisher import Acknowledgement, FencedError, Head, Receipt
from rowsignal.relay.subjects import all_subjects, stream_name

EXPECTED_SEQUENCE = "Nats-Expected-Last-Sequence"
EXPECTED_ID = "Nats-Expected-Last-Msg-Id"
WRONG_PLACE = frozenset({10070, 10071, 10164})  # wrong last message id, wrong last sequence (two)
IN_FLIGHT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamSettings:
    """How the stream is made where there is none: one that exists stays as it is.

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
        self._js = client.jetstream(publish_async_max_pending=IN_FLIGHT)

    @property
    def max_bytes(self) -> int:
        """How large a message may be."""
        return self._client.max_payload

    async def head(self) -> Head:
        """Return the end of the stream, which is made where there is none."""
        sequence = (await self._info()).state.last_seq
        if not sequence:
            return Head()
        try:
            last = await self._js.get_msg(self.stream, seq=sequence)
        except NotFoundError:  # it was discarded
            return Head(sequence)
        return Head(sequence, (last.headers or {}).get(POSITION))

    async def publish(self, message: Message, after: int, follows: str | None) -> Acknowledgement:
        """Send a message that is stored only right after a sequence, and the id that it has."""
        headers = message.headers
        headers[EXPECTED_SEQUENCE] = str(after)
        if follows is not None:
            headers[EXPECTED_ID] = follows
        return await self._js.publish_async(message.subject, message.payload, headers=headers)

    async def wait(self, acknowledgement: Acknowledgement, timeout: float) -> Receipt:
        """Return the receipt; raise `TimeoutError` after some seconds without one."""
        assert isinstance(acknowledgement, asyncio.Future)  # noqa: S101 -- of `publish`
        if not acknowledgement.done():
            await asyncio.wait([acknowledgement], timeout=timeout)
        if not acknowledgement.done():
            raise TimeoutError(f"JetStream did not acknowledge a message within {timeout:g} s.")
        try:
            receipt: Receipt = acknowledgement.result()
        except APIError as error:
            if error.err_code in WRONG_PLACE:
                raise FencedError from error
            raise
        return receipt

    def forget(self, acknowledgement: Acknowledgement) -> None:
        """Wait for a receipt no longer; one that never came would keep its place among few."""
        assert isinstance(acknowledgement, asyncio.Future)  # noqa: S101 -- of `publish`
        if not acknowledgement.cancel() and not acknowledgement.cancelled():
            acknowledgement.exception()  # has been seen

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
