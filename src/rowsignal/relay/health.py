"""The health of a database's stream and of its relay, from NATS and from the change log."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import ChangeLog
from rowsignal.changes import Reset
from rowsignal.exceptions import PositionError, UnavailableError
from rowsignal.identifiers import QualifiedName
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.nats.subjects import presence_subject, stream_name
from rowsignal.relay.descriptions import Description, Descriptions
from rowsignal.relay.messages import POSITION
from rowsignal.relay.presence import LAG

PATIENCE = 5.0
SILENCE = 3.0  # seconds after which a relay that says nothing is not at work
INTERVAL = 1.0
ACCOUNT_PATIENCE = 1.0
API = "$JS.API"
NOT_FOUND = 404
NANOSECONDS = 1_000_000_000

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamHealth:
    """A stream at one moment. Ages and lags are in seconds, None where they are not known.

    `relay_lag` is what the relay at work says of itself, None where none was heard.
    `storage_share` is how much of the account's storage is used, `full_share` how much of the
    stream's own limit of bytes; None without such a limit. `position` is that of the last message
    in the change log.
    """

    name: str
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    max_bytes: int | None
    max_age: float | None
    oldest_at: datetime | None
    newest_at: datetime | None
    replicas: int
    replicas_behind: int
    refuses_when_full: bool
    relay_lag: float | None
    tables: Sequence[QualifiedName]
    storage_share: float | None = None
    position: str = ""

    @property
    def full_share(self) -> float | None:
        """The used share of the stream's limit of bytes."""
        return None if not self.max_bytes else self.bytes / self.max_bytes

    @property
    def span(self) -> float | None:
        """The age of the oldest message in seconds."""
        if self.oldest_at is None:
            return None
        return max((datetime.now(UTC) - self.oldest_at).total_seconds(), 0.0)


class RelayEar:
    """Hears whether a relay of one database is at work."""

    def __init__(self, database: str) -> None:
        self._subject = presence_subject(database)
        self._lag = 0.0
        self._heard_at: float | None = None
        self._has_heard = asyncio.Event()

    async def open(self, client: Client) -> None:
        """Begin to hear; the subscription lasts as long as the client."""
        await client.subscribe(self._subject, cb=self._heard)

    async def wait(self) -> None:
        """Wait until a relay has said something, or has been silent for too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(SILENCE):
                await self._has_heard.wait()

    @property
    def lag(self) -> float | None:
        """The lag that the active relay announces; None without an active relay."""
        now = asyncio.get_running_loop().time()
        if self._heard_at is None or now - self._heard_at > SILENCE:
            return None
        return self._lag

    async def _heard(self, message: Msg) -> None:
        self._heard_at = asyncio.get_running_loop().time()
        self._lag = _number((message.headers or {}).get(LAG))
        self._has_heard.set()


def _number(text: str | None) -> float:
    try:
        return max(float(text or 0), 0.0)
    except ValueError:
        return 0.0


async def stream_health(nats: str | Client, database: str) -> StreamHealth | None:
    """Return how a database's stream is; None where there is none.

    Listens for some seconds where no relay says that it is at work. Raises `UnavailableError` where
    NATS does not answer.
    """
    ear = RelayEar(database)
    try:
        async with (
            asyncio.timeout(PATIENCE + SILENCE),
            connected(nats, "rowsignal doctor") as client,
        ):
            await ear.open(client)
            await ear.wait()
            tables = await Descriptions(client, database).load()
            health = await _health(client, database, ear, tuple(tables))
            if health is None:
                return None
            share, position = await _storage_share(client), await _position(client, health)
            return replace(health, storage_share=share, position=position)
    except OUTAGES as error:
        raise UnavailableError("NATS does not answer: is the address right?") from error


async def unrelayed_seconds(engine: AsyncEngine, health: StreamHealth) -> float | None:
    """Return how long the oldest change waits in the log for a relay; 0 where none does.

    None where that cannot be told: the stream's position is not one of this log, or no longer.
    """
    if not health.position:
        return None
    async with ChangeLog(engine) as log:
        try:
            waiting = await log.read(health.position, tables=list(health.tables), limit=1)
        except PositionError:
            return None
    if isinstance(waiting, Reset):
        return None
    times = [it.captured_at for it in waiting.changes if it.captured_at is not None]
    return (datetime.now(UTC) - times[0]).total_seconds() if times else 0.0


class StreamWatch:
    """Keeps in sight how a stream is, for a gateway; told of tables as relays describe them."""

    def __init__(self, nats: str | Client, database: str) -> None:
        self.health: StreamHealth | None = None
        self.problem: str | None = "NATS has not been asked yet."
        self.has_asked = False
        self.tables: dict[QualifiedName, Description] = {}
        self.tables_changed = asyncio.Event()
        self._nats = nats
        self._database = database
        self._described = -1

    async def run(self) -> NoReturn:
        """Ask once a second until cancelled, whatever goes away meanwhile."""
        async with connected(self._nats, "rowsignal gateway status") as client:
            ear = RelayEar(self._database)
            await ear.open(client)
            await ear.wait()  # or it would be missing in the first answers
            while True:
                await self._ask(client, ear)
                await asyncio.sleep(INTERVAL)

    async def _ask(self, client: Client, ear: RelayEar) -> None:
        try:
            async with asyncio.timeout(PATIENCE):
                await self._ask_for_tables(client)
                self.health = await _health(client, self._database, ear, tuple(self.tables))
        except OUTAGES:
            self.problem = "NATS does not answer just now."
            return
        finally:
            self.has_asked = True
        self.problem = None if self.health else f"There is no stream {stream_name(self._database)}."

    async def _ask_for_tables(self, client: Client) -> None:
        """Read the descriptions where one was stored since they were read."""
        descriptions = Descriptions(client, self._database)
        version = await descriptions.version()
        if version == self._described:
            return
        found = await descriptions.load()
        self._described = version
        if found != self.tables:
            self.tables = found
            self.tables_changed.set()


async def _health(
    client: Client, database: str, ear: RelayEar, tables: Sequence[QualifiedName]
) -> StreamHealth | None:
    name = stream_name(database)
    # nats-py leaves out when the first and the last message were stored.
    info = await _asked(client, f"STREAM.INFO.{name}")
    if info is None:
        return None
    config, state = info["config"], info["state"]
    is_empty = not state["messages"]
    return StreamHealth(
        name=name,
        first_sequence=state["first_seq"],
        last_sequence=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        max_bytes=_limit(config.get("max_bytes")),
        max_age=_limit(config.get("max_age", 0) / NANOSECONDS),
        oldest_at=None if is_empty else datetime.fromisoformat(state["first_ts"]),
        newest_at=None if is_empty else datetime.fromisoformat(state["last_ts"]),
        replicas=config.get("num_replicas", 1),
        replicas_behind=_behind(info),
        refuses_when_full=config.get("discard") == "new",
        relay_lag=ear.lag,
        tables=tables,
    )


async def _asked(client: Client, path: str) -> dict[str, Any] | None:
    """Ask JetStream; return None for what is not there (NATS, "JetStream wire API")."""
    answer = await client.request(f"{API}.{path}", timeout=PATIENCE)
    found: dict[str, Any] = json.loads(answer.data)
    error = found.get("error")
    if error is None:
        return found
    if error.get("code") == NOT_FOUND:
        return None
    raise ConnectionError(str(error.get("description")))


async def _storage_share(client: Client) -> float | None:
    """Return how much of the account's storage is used; None without a limit, or a right to ask."""
    try:
        async with asyncio.timeout(ACCOUNT_PATIENCE):
            found = await _asked(client, "INFO")
    except OUTAGES:
        return None
    limit = _limit(((found or {}).get("limits") or {}).get("max_storage"))
    return None if found is None or limit is None else found["storage"] / limit


async def _position(client: Client, health: StreamHealth) -> str:
    """Return the position in the log that the last message has."""
    if not health.messages:
        return ""
    js = client.jetstream(timeout=PATIENCE)
    try:
        last = await js.get_msg(health.name, seq=health.last_sequence)
    except NotFoundError:  # it was discarded just now
        return ""
    return str((last.headers or {}).get(POSITION, ""))


def _limit(number: Number | None) -> Number | None:
    """Return a limit; JetStream writes 0 or -1 for none."""
    return number if number is not None and number > 0 else None


def _behind(info: Mapping[str, Any]) -> int:
    replicas = (info.get("cluster") or {}).get("replicas") or []
    return sum(not it.get("current") or bool(it.get("offline")) for it in replicas)
