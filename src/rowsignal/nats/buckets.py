"""A key-value bucket of JetStream, whose values are set only where they are as they were read."""

from dataclasses import dataclass
from typing import Protocol

from nats.aio.client import Client
from nats.js import api
from nats.js.errors import APIError, BadRequestError, NoStreamResponseError, NotFoundError

TIMEOUT = 1.0
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
WRONG_SEQUENCE = frozenset({10071, 10164})  # NATS, "JetStream API errors"


class NatsAwayError(ConnectionError):
    """NATS is not connected just now."""


class Connection(Protocol):
    """The owner of the connection, and the number of replicas of a new bucket."""

    def client(self) -> Client:
        """Return the client; raise `NatsAwayError` while it is not connected."""

    async def replicas(self) -> int:
        """Return the number of copies."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A value, and the revision that it was read at."""

    value: bytes
    revision: int


class Bucket:
    """A bucket whose values expire; kept in memory, and made where there is none.

    In memory, because what a restart of NATS loses is refused or said again, while a disk that had
    not been written could bring a ticket back that was used.
    """

    def __init__(self, connection: Connection, name: str, *, ttl: float) -> None:
        self._connection = connection
        self._name = name
        self._ttl = ttl

    async def ttl(self) -> float:
        """Return after how many seconds values expire, which the bucket's maker decided."""
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        try:
            info = await js.stream_info(self._stream)
        except NotFoundError:
            await self._make()
            return self._ttl
        return info.config.max_age or self._ttl

    async def get(self, key: str) -> Entry | None:
        """Return the value of a key, from the bucket's leader."""
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        try:
            found = await js.get_msg(self._stream, subject=self._subject(key))
        except NotFoundError:
            return None
        if not found.data:  # it was removed
            return None
        return Entry(found.data, found.seq or 0)

    async def set(self, key: str, value: bytes, revision: int) -> int | None:
        """Set a key that has a revision, 0 for none; return the new one, None where it differs."""
        headers = {EXPECTED: str(revision)}
        try:
            return await self._publish(key, value, headers)
        except APIError as error:
            if error.err_code in WRONG_SEQUENCE:
                return None
            raise

    async def put(self, key: str, value: bytes) -> int:
        """Set a key, whatever it has; return the new revision."""
        return await self._publish(key, value, None)

    async def forget(self, key: str) -> None:
        """Remove a key without a trace."""
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        await js.purge_stream(self._stream, subject=self._subject(key))

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys below a prefix."""
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        before = self._subject("")
        try:
            info = await js.stream_info(self._stream, subjects_filter=f"{before}{prefix}.>")
        except NotFoundError:
            return []
        return [subject.removeprefix(before) for subject in info.state.subjects or {}]

    @property
    def _stream(self) -> str:
        return f"KV_{self._name}"

    def _subject(self, key: str) -> str:
        return f"$KV.{self._name}.{key}"

    async def _publish(self, key: str, value: bytes, headers: dict[str, str] | None) -> int:
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        subject = self._subject(key)
        try:
            return (await js.publish(subject, value, headers=headers)).seq
        except NoStreamResponseError:
            await self._make()
        return (await js.publish(subject, value, headers=headers)).seq

    async def _make(self) -> None:
        js = self._connection.client().jetstream(timeout=TIMEOUT)
        config = api.KeyValueConfig(
            bucket=self._name,
            ttl=self._ttl,
            storage=api.StorageType.MEMORY,
            replicas=await self._connection.replicas(),
        )
        try:
            await js.create_key_value(config)
        except BadRequestError:  # another process has made it, with other settings
            await js.stream_info(self._stream)
