"""Hints from a relay over NATS, where a process shall hold no connection that LISTENs.

A message is a hint and nothing more: rows are read from PostgreSQL. So a message that JetStream
refused, or that is not of a relay at all, costs a read.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, cast

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import SlowConsumerError
from nats.js.errors import NotFoundError
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.changes import Operation
from rowsignal.identifiers import QualifiedName
from rowsignal.listener.hints import (
    HintsUnavailableError,
    Inlet,
    RelayedCapture,
    RelayedLog,
    RelayedTable,
    Side,
    Target,
    relayed_token,
)
from rowsignal.listener.timings import Timings
from rowsignal.nats.connection import OUTAGES, close, connect_once
from rowsignal.nats.subjects import (
    TABLES_BUCKET,
    description_key,
    presence_subject,
    subject_of,
)
from rowsignal.payload import LOG_CHANNEL, Hint, Key, PayloadError, decode_json, parse_key
from rowsignal.postgres.errors import describe
from rowsignal.postgres.statements import query

logger = logging.getLogger("rowsignal.listener")

SILENCE = 3.0  # a relay says twice a second that it is at work; another takes over after two
MISSED_PAUSE = 1.0  # between reads of all rows, however many messages ask for them
TRANSACTION = "Rowsignal-Transaction"
KV_OPERATION = "KV-Operation"
CAPTURES = frozenset({"log", "wal"})

AWAY = "NATS does not answer: {}"
LOST = "the connection to NATS was lost"
NO_RELAY = "no relay of the database is at work (`rowsignal relay`)"
STANDBY = "rows are read from a standby, which may lag behind the relay"


@dataclass(frozen=True, slots=True)
class RelayLease:
    """Subscriptions to the subjects of some tables."""

    connection: "RelayConnection"
    subscriptions: tuple[Subscription, ...]

    async def release(self) -> None:
        """End the subscriptions."""
        if not self.connection.lost.is_set():
            for subscription in self.subscriptions:
                await subscription.unsubscribe()


class RelayConnection:
    """A connection to NATS with plain subscriptions: JetStream does not know of it."""

    def __init__(self, database: str, inlet: Inlet, *, is_standby: bool) -> None:
        self.lost = asyncio.Event()
        self._database = database
        self._inlet = inlet
        self._is_standby = is_standby
        self._client: Client | None = None
        self._beat = asyncio.Event()
        self._has_heard_since_arming = True
        self._asked: set[str] = set()
        self._missed_timer: asyncio.TimerHandle | None = None
        self._has_missed_more = False

    @classmethod
    async def open(cls, url: str, side: Side, inlet: Inlet, *, timeout: float) -> Self:
        """Connect; raise `HintsUnavailableError`, or what keeps PostgreSQL from being asked."""
        database, is_standby = await side.run(_where, timeout=timeout)
        connection = cls(database, inlet, is_standby=is_standby)
        try:
            await connection._connect(url, timeout)
        except OUTAGES as error:
            await connection.close()
            raise HintsUnavailableError(AWAY.format(describe(error))) from error
        except BaseException:
            await connection.close()
            raise
        return connection

    async def states(self, side: Side, timings: Timings) -> AsyncGenerator[str | None, None]:
        """Yield None while a relay is at work and else the reason; raise when NATS is lost."""
        while not self.lost.is_set():
            if self._is_standby:
                yield STANDBY
                await self._wait(self.lost, timings.canary)
                _, self._is_standby = await side.run(_where, timeout=timings.query_timeout)
                continue
            is_heard = await self._wait(self._beat, SILENCE)
            self._beat.clear()
            if not self.lost.is_set():
                yield None if is_heard else NO_RELAY
        raise HintsUnavailableError(LOST)

    async def arm(self, target: Target, timeout: float) -> RelayLease | None:
        """Subscribe; None where that fails, which the caller takes for a reason to poll."""
        client = self._client
        if isinstance(target, int) or client is None or self.lost.is_set():
            return None
        names = target.tables if isinstance(target, RelayedLog) else (target.name,)
        take = self._take_wake if isinstance(target, RelayedLog) else partial(self._take, target)
        subscriptions: list[Subscription] = []
        try:
            async with asyncio.timeout(timeout):
                for name in names:
                    subject = subject_of(self._database, name)
                    subscriptions.append(await client.subscribe(subject, cb=take))
                await client.flush()
        except OUTAGES as error:
            logger.info("a table cannot be subscribed to in NATS: %s", describe(error))
            self.lost.set()
            self._beat.set()
            return None
        except BaseException:
            await RelayLease(self, tuple(subscriptions)).release()
            raise
        self._has_heard_since_arming = False
        return RelayLease(self, tuple(subscriptions))

    def late_writers(self) -> frozenset[str]:
        """Return what may still go unreported after arming.

        In a cluster of NATS the relay's server learns of a subscription a moment later than the
        one that took it. What the relay says next, twice a second, has come the same way.
        """
        return frozenset() if self._has_heard_since_arming else frozenset({"relay"})

    async def capture_of(self, name: QualifiedName, timeout: float) -> RelayedCapture | None:
        """Return how the relay learns of a table's changes; None for one that it does not carry."""
        if self._client is None:
            return None
        key = description_key(self._database, name)
        self._asked.add(key)
        js = self._client.jetstream(timeout=timeout)
        try:
            found = await js.get_msg(f"KV_{TABLES_BUCKET}", subject=f"$KV.{TABLES_BUCKET}.{key}")
        except NotFoundError:
            return None
        except OUTAGES as error:
            logger.info("NATS does not say whether a table is relayed: %s", describe(error))
            return None
        if KV_OPERATION in (found.headers or {}):  # it was deleted
            return None
        return _capture_in(found.data or b"")

    async def close(self) -> None:
        """Drop the connection."""
        self.lost.set()
        if self._missed_timer is not None:
            self._missed_timer.cancel()
        if self._client is not None:
            await asyncio.shield(close(self._client))

    async def _connect(self, url: str, timeout: float) -> None:
        client = self._client = await connect_once(
            url,
            "rowsignal waits",
            lost=self._note_loss,
            failed=self._note_error,
            timeout=timeout,
        )
        key = f"$KV.{TABLES_BUCKET}.{description_key(self._database)}.>"
        async with asyncio.timeout(timeout):
            await client.subscribe(presence_subject(self._database), cb=self._hear)
            await client.subscribe(subject_of(self._database), cb=self._take_reset)
            await client.subscribe(key, cb=self._take_description)
            await client.flush()

    async def _wait(self, event: asyncio.Event, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await event.wait()
        except TimeoutError:
            return False
        return True

    async def _note_loss(self) -> None:
        self.lost.set()
        self._beat.set()

    async def _note_error(self, error: Exception) -> None:
        logger.debug("the connection to NATS: %s", describe(error))
        if isinstance(error, SlowConsumerError):  # nats-py has dropped a message
            self._miss()

    async def _hear(self, _: Msg) -> None:
        self._has_heard_since_arming = True
        self._beat.set()

    async def _take(self, table: RelayedTable, message: Msg) -> None:
        hint, is_read = hint_of(table, message.data, message.headers or {})
        self._inlet.hinted(hint, is_read=is_read)

    async def _take_wake(self, _: Msg) -> None:
        self._inlet.received(LOG_CHANNEL, "")

    async def _take_reset(self, message: Msg) -> None:
        """Take a message about all tables: a gap, or that nothing happened."""
        if _operation_in(message.data) != "checkpoint":
            self._miss()

    async def _take_description(self, message: Msg) -> None:
        if message.subject.removeprefix(f"$KV.{TABLES_BUCKET}.") in self._asked:
            self._inlet.rearm()

    def _miss(self) -> None:
        if self._missed_timer is not None:
            self._has_missed_more = True
            return
        self._inlet.missed()
        loop = asyncio.get_running_loop()
        self._missed_timer = loop.call_later(MISSED_PAUSE, self._miss_more)

    def _miss_more(self) -> None:
        self._missed_timer = None
        if self._has_missed_more:
            self._has_missed_more = False
            self._miss()


async def _where(connection: AsyncConnection) -> tuple[str, bool]:
    """Return the database's name, which subjects contain, and whether it is on a standby."""
    row = (await connection.exec_driver_sql(query("server"))).mappings().one()
    return str(row["database"]), bool(row["is_standby"])


def hint_of(table: RelayedTable, data: bytes, headers: dict[str, str]) -> tuple[Hint, bool]:
    """Return the hint of a message, and whether the message could be read.

    What cannot be read may be a change all the same, of a newer version: any row may have changed.
    The relay leaves out changed columns that it does not carry, so none are told.
    """
    try:
        body = decode_json(data.decode())
        operation, key = _told(table, body)
        is_read = True
    except (ValueError, TypeError, KeyError, AttributeError):  # PayloadError is a ValueError
        operation, key, is_read = Operation.UPDATE, None, False
    transaction = headers.get(TRANSACTION, "")
    is_number = transaction.isascii() and transaction.isdigit() and len(transaction) <= 20
    hint = Hint(
        token=relayed_token(table.name),
        schema=table.name[0],
        table=table.name[1],
        operation=operation,
        transaction_id=int(transaction) if is_number else None,
        key=key,
    )
    return hint, is_read


def _told(table: RelayedTable, body: Any) -> tuple[Operation, Key | None]:
    if body["operation"] == "reset":
        return Operation.UPDATE, None
    operation = Operation(body["operation"])
    key = body["key"]
    if operation is Operation.TRUNCATE or not table.key or key is None:
        return operation, None
    if key.keys() != set(table.key):
        raise PayloadError("the key has other columns")
    return operation, parse_key([key[name] for name in table.key])


def _operation_in(data: bytes) -> str | None:
    try:
        return str(decode_json(data.decode())["operation"])
    except (ValueError, TypeError, KeyError):
        return None


def _capture_in(data: bytes) -> RelayedCapture | None:
    try:
        found = json.loads(data).get("capture", "log")
    except (ValueError, AttributeError, RecursionError):
        return None
    return cast("RelayedCapture", found) if found in CAPTURES else None
