"""One connection that LISTENs: how it is opened, tested and found dead."""

import asyncio
import random
import secrets
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.identifiers import QualifiedName
from rowsignal.listener.hints import HintsUnavailableError, Side, Target
from rowsignal.listener.timings import Timings
from rowsignal.payload import CHANNEL, LOCK_CLASS, LOG_CHANNEL
from rowsignal.postgres.connections import throw_away
from rowsignal.postgres.errors import sqlstate
from rowsignal.postgres.statements import query

Receive = Callable[[str, str], None]
PROBE_COLLISION_DELAYS = (0.0, 0.001, 0.004, 0.016, 0.05)
QUEUE_FULL = "54000"  # program_limit_exceeded, raised by the commit of a NOTIFY


class CanaryError(HintsUnavailableError):
    """The canary, a notification that this process sends to itself, did not arrive."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A shared advisory lock on one bucket; PostgreSQL drops it with the connection."""

    bucket: int
    wire: "Wire"
    timeout: float

    async def release(self) -> None:
        """Release the lock; after the last release writers no longer notify."""
        if not self.wire.lost.is_set():
            await self.wire.ask(query("disarm"), LOCK_CLASS, self.bucket, timeout=self.timeout)


class Wire:
    """A connection that LISTENs; `lost` is set as soon as it is known to be dead.

    Nothing is ever written on it: a session does not see its own shared advisory locks.
    """

    def __init__(
        self, connection: AsyncConnection, driver: asyncpg.Connection, receive: Receive
    ) -> None:
        self.lost = asyncio.Event()
        self._connection = connection
        self._driver = driver
        self._receive = receive
        self._turn = asyncio.Lock()
        self._canary_channel = f"{CHANNEL}_{secrets.token_hex(8)}"
        self._canary = asyncio.Event()

    @classmethod
    async def open(cls, engine: AsyncEngine, receive: Receive, *, timeout: float) -> "Wire":
        """Connect and LISTEN; raise the error of the server or the network."""
        async with asyncio.timeout(timeout):
            connection = await engine.connect()
            try:
                raw = await connection.get_raw_connection()
                wire = cls(connection, raw.driver_connection, receive)
                await wire._listen()
            except BaseException:
                await throw_away(connection)
                raise
            return wire

    async def states(self, side: Side, timings: Timings) -> AsyncGenerator[str | None, None]:
        """Yield None while notifications arrive and else the reason; raise the connection's end."""
        timeout = timings.query_timeout
        await self.prove(side, timeout=timeout)
        await self.keep_alive()
        yield None
        while not await self._is_lost_within(timings.canary):
            used = await self.ask(query("queue_usage"), timeout=timeout)
            await self.prove(side, timeout=timeout)
            is_full = used > timings.full_queue
            yield f"PostgreSQL's notification queue is {used:.0%} full" if is_full else None
        raise ConnectionError("the listening connection was closed")

    async def arm(self, target: Target, timeout: float) -> Lease | None:
        """Take the shared advisory lock that makes triggers notify, and return the lease on it.

        Returns None if another session holds the lock exclusively: the caller polls then. Triggers
        that ran before the lock was taken did not notify, so the caller must drain writers. See
        the PostgreSQL manual, "Advisory Lock Functions".
        """
        if not isinstance(target, int):
            return None
        for delay in PROBE_COLLISION_DELAYS:  # a writer's own probe is gone in microseconds
            await asyncio.sleep(delay)
            if self.lost.is_set():
                return None
            if await self.ask(query("arm"), LOCK_CLASS, target, timeout=timeout):
                return Lease(target, self, timeout)
        return None

    async def capture_of(self, name: QualifiedName, timeout: float) -> None:
        """Return None: nothing is relayed here."""

    def late_writers(self) -> frozenset[str]:
        """Return nothing: PostgreSQL itself knows the open writers."""
        return frozenset()

    async def keep_alive(self) -> None:
        """Switch off the timeouts that would end an idle session.

        After the canary has come back: through a transaction pooler these settings would stay on
        a connection that other clients use.
        """
        await self.ask(query("listener_settings"), timeout=5.0)
        transport = getattr(self._driver, "_transport", None)  # asyncpg has no keepalive option
        peer = transport and transport.get_extra_info("socket")
        if peer is not None and peer.family in {socket.AF_INET, socket.AF_INET6}:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    async def prove(self, side: Side, *, timeout: float) -> None:
        """Send the canary from a side connection; raise `CanaryError` unless it arrives.

        A pooler delivers a notification that arrives during a statement of the same connection,
        but drops one that arrives while the connection is idle. Only a side connection shows that.
        """
        self._canary.clear()
        try:
            await side.run(self._send_canary, timeout=timeout)
        except DBAPIError as error:
            if sqlstate(error) == QUEUE_FULL:
                raise CanaryError("PostgreSQL's notification queue is full") from error
            raise
        try:
            async with asyncio.timeout(timeout):
                await self._canary.wait()
        except TimeoutError as error:
            raise CanaryError(self._explain()) from error

    async def ask(self, statement: str, *arguments: object, timeout: float) -> Any:
        """Run a statement and return its first value; a timeout marks the connection as lost."""
        async with self._turn:
            try:
                async with asyncio.timeout(timeout):
                    # All rows: `fetchval` would stop a statement that sets one thing in each.
                    rows = await self._driver.fetch(statement, *arguments)
                    return rows[0][0] if rows else None
            except (TimeoutError, OSError, asyncpg.InterfaceError, asyncpg.PostgresError):
                self.lost.set()
                raise
            except asyncio.CancelledError:
                self.lost.set()  # the statement may have run: the armed buckets are unknown
                raise

    async def close(self) -> None:
        """Drop the connection without waiting for the server."""
        self.lost.set()
        self._driver.terminate()
        await throw_away(self._connection)

    async def _is_lost_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):  # noqa: S311 -- spread
                await self.lost.wait()
        except TimeoutError:
            return False
        return True

    async def _listen(self) -> None:
        self._driver.add_termination_listener(lambda _connection: self.lost.set())
        for channel in (CHANNEL, LOG_CHANNEL, self._canary_channel):
            await self._driver.add_listener(channel, self._notified)

    def _notified(self, _driver: object, _pid: int, channel: str, payload: str) -> None:
        if channel == self._canary_channel:
            self._canary.set()
        else:
            self._receive(channel, payload)

    def _send_canary(self, connection: AsyncConnection) -> Awaitable[object]:
        return connection.exec_driver_sql(query("notify"), (self._canary_channel, ""))

    def _explain(self) -> str:
        if self.lost.is_set():
            return "the listening connection was closed"
        return (
            "notifications do not come back: the connection leads through a transaction pooler"
            " (give Listener a listen_url that goes to PostgreSQL itself), or its network path is"
            " dead"
        )
