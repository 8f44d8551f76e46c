"""The listener: one LISTEN connection per engine and event loop, with reconnects and leases."""

import asyncio
import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.hooks import Hooks, ListenerMode, guarded
from rowsignal.listener.connection import CanaryError, Wire
from rowsignal.listener.timings import Timings
from rowsignal.payload import LOCK_CLASS
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import describe, is_hopeless, sqlstate
from rowsignal.postgres.read_connections import ReadConnections
from rowsignal.postgres.statements import query

logger = logging.getLogger("rowsignal.listener")

# Errors of a server, a driver or a network that is not available.
OUTAGES = (
    OSError,
    TimeoutError,
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)

PROBE_COLLISION_DELAYS = (0.0, 0.001, 0.004, 0.016, 0.05)
STEADY = 5.0  # seconds a connection must last before the next failure counts as a first one

Companion = TypeVar("Companion")


class Receiver(Protocol):
    """Callback interface of a listener. Methods must not block."""

    def connected(self) -> None:
        """Handle a new connection: notifications arrive from now on; nothing is armed yet."""

    def degraded(self) -> None:
        """Handle the loss of notifications; nothing is armed any more."""

    def received(self, channel: str, payload: str) -> None:
        """Handle one notification."""

    async def stopped(self) -> None:
        """Handle the end of the listener."""


@dataclass(slots=True)
class ListenerState:
    """The state of a listener.

    `polling` means that notifications do not arrive, for the given `reason`. `epoch` counts the
    connections that worked, `notifications` what arrived on them.
    """

    mode: ListenerMode = "stopped"
    reason: str | None = None
    epoch: int = 0
    notifications: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A shared advisory lock on one bucket; PostgreSQL drops it with the connection."""

    bucket: int
    wire: Wire
    timeout: float

    async def release(self) -> None:
        """Release the lock; after the last release writers no longer notify."""
        if not self.wire.lost.is_set():
            await self.wire.ask(query("disarm"), LOCK_CLASS, self.bucket, timeout=self.timeout)


class _Registry:
    """The listeners of all event loops, of any thread.

    Not a dictionary with weak keys: a listener refers to its event loop, and a value that refers to
    its key keeps it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: dict[tuple[asyncio.AbstractEventLoop, object], Listener] = {}

    def __len__(self) -> int:
        return len(self._listeners)

    def get(self, engine: AsyncEngine) -> "Listener":
        """Return the running event loop's listener for an engine; make one where there is none."""
        key = asyncio.get_running_loop(), _identity(engine)
        with self._lock:
            if key not in self._listeners:
                self._drop_closed()
                self._listeners[key] = Listener(engine)
            return self._listeners[key]

    def put(self, listener: "Listener") -> None:
        """Make a listener the running event loop's for its engine."""
        with self._lock:
            self._drop_closed()
            self._listeners[asyncio.get_running_loop(), _identity(listener.engine)] = listener

    def drop(self, listener: "Listener") -> None:
        """Forget a listener, if it has not been replaced."""
        key = asyncio.get_running_loop(), _identity(listener.engine)
        with self._lock:
            if self._listeners.get(key) is listener:
                del self._listeners[key]

    def _drop_closed(self) -> None:
        for key in [key for key in self._listeners if key[0].is_closed()]:
            del self._listeners[key]


_registry = _Registry()


@dataclass(eq=False)
class Listener:
    """One LISTEN connection for an engine, shared by all waits and streams of an event loop.

    Waiting starts it by itself. Open one in an application's lifespan to keep it warm, to
    raise what the first connection raises, or to give it another address:

        async with Listener(engine, listen_url="postgresql+asyncpg://primary/app"):
            ...

    `listen_url` is for engines that connect through a transaction pooler or to a standby, where
    LISTEN does not work (PostgreSQL manual, LISTEN and "Hot Standby"); rows are then read through
    that address, too.
    """

    engine: AsyncEngine
    listen_url: str | None = None
    hooks: Hooks = field(default_factory=Hooks)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.hooks = guarded(self.hooks)
        self.state = ListenerState()
        self.side = SideConnection(beside(self.engine, self.listen_url))
        self.reads = ReadConnections(lambda: beside(self.engine, self.listen_url))
        self._companions: dict[type[Any], Any] = {}
        self._failure = ""
        self._wire_engine = beside(self.engine, self.listen_url)
        self._wire: Wire | None = None
        self._receivers: set[Receiver] = set()
        self._task: asyncio.Task[None] | None = None
        self._retirement: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_kept_open = False

    @classmethod
    def of(cls, engine: AsyncEngine) -> "Listener":
        """Return the running event loop's listener for an engine; make one where there is none."""
        return _registry.get(engine)

    def companion(self, kind: type[Companion], make: Callable[[], Companion]) -> Companion:
        """Return the object of a class that shares this listener's life; create it at first use."""
        if kind not in self._companions:
            self._companions[kind] = make()
        found: Companion = self._companions[kind]
        return found

    async def __aenter__(self) -> Self:
        """Connect; raise the error of the first connection.

        If PostgreSQL answers and only notifications do not arrive, the listener starts by polling.
        """
        _registry.put(self)
        self._is_kept_open = True
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start(first)
        try:
            await first
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exception: object) -> None:
        """Stop listening; remaining waits poll from now on."""
        await self.close()

    def attach(self, receiver: Receiver) -> None:
        """Register `receiver`; the first one starts the listener."""
        self._receivers.add(receiver)
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        self._start()

    def detach(self, receiver: Receiver) -> None:
        """Remove `receiver`; after the last one the listener stops at its idle timeout."""
        self._receivers.discard(receiver)
        if self._receivers or self._is_kept_open or self._retirement is not None:
            return
        loop = asyncio.get_running_loop()
        self._retirement = loop.call_later(self.timings.idle_timeout, self._retire)

    async def arm(self, bucket: int) -> "Lease | None":
        """Take the shared advisory lock that makes triggers notify, and return the lease on it.

        Returns None if notifications do not arrive or another session holds the lock exclusively:
        the caller polls then. Triggers that ran before the lock was taken did not notify, so the
        caller must drain writers. See the PostgreSQL manual, "Advisory Lock Functions".
        """
        for delay in PROBE_COLLISION_DELAYS:  # a writer's own probe is gone in microseconds
            await asyncio.sleep(delay)
            wire = self._wire
            if wire is None or self.state.mode != "listening":
                return None
            if await wire.ask(query("arm"), LOCK_CLASS, bucket, timeout=self.timings.query_timeout):
                return Lease(bucket, wire, self.timings.query_timeout)
        return None

    async def close(self) -> None:
        """Close the connections and end all tasks."""
        self._is_kept_open = False
        _registry.drop(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for receiver in tuple(self._receivers):
            await receiver.stopped()
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        await asyncio.gather(self.side.close(), self.reads.close())

    def _start(self, first: asyncio.Future[None] | None = None) -> None:
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(first), name="rowsignal listener")
            self._task.add_done_callback(partial(_report, first=first))

    def _retire(self) -> None:
        self._retirement = None
        if not self._receivers and not self._is_kept_open:
            _registry.drop(
                self
            )  # now, so that the next wait creates a listener instead of using this one
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self.close(), name="rowsignal listener closing")

    async def _run(self, first: asyncio.Future[None] | None) -> None:
        try:
            await self._keep_serving(first)
        finally:
            self._degrade("the listener was stopped", level=logging.INFO)
            self.state.mode = "stopped"
            _registry.drop(self)
            await asyncio.gather(self.side.close(), self.reads.close())
            await self._wire_engine.dispose()

    async def _keep_serving(self, first: asyncio.Future[None] | None) -> None:
        """Connect again and again; return when the first connection fails for good."""
        delays = self.timings.delays()
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            try:
                await self._serve(first)
            except Exception as error:  # noqa: BLE001 -- no task ends unseen: it is told
                if self._is_first(error, first):
                    return
                self._tell(error)
            if loop.time() - began > STEADY:  # it worked for a while: reconnect without delay
                delays = self.timings.delays()
            await asyncio.sleep(next(delays))

    def _is_first(self, error: Exception, first: asyncio.Future[None] | None) -> bool:
        """Tell whether this is the first connection, whose error the caller gets; else degrade."""
        if first is None or first.done() or isinstance(error, CanaryError):
            self._degrade(describe(error))
            if first is not None and not first.done():  # the first connection may start by polling
                first.set_result(None)
            return False
        first.set_exception(error)
        return True

    def _tell(self, error: Exception) -> None:
        """Log an unexpected error once; errors of the server or the network are not logged here."""
        if sqlstate(error) is not None or not is_hopeless(error):
            return
        cause = describe(error)
        if cause != self._failure:
            logger.error("the listener has failed and begins again: %s", cause, exc_info=error)
        self._failure = cause
        self.hooks.task_restarted(task="listener", reason=cause)

    async def _serve(self, first: asyncio.Future[None] | None) -> None:
        """Listen on one connection until it is lost; raise the cause."""
        if self.state.mode == "stopped":
            self.state.mode = "connecting"
        timeout = self.timings.query_timeout
        wire = await Wire.open(self._wire_engine, self._received, timeout=timeout)
        self.reads.attempts.forgive()  # the server answers: no need to space attempts
        try:
            await wire.prove(self.reads, timeout=timeout)
            await wire.keep_alive()
            self._connect(wire)
            if first is not None and not first.done():
                first.set_result(None)
            while not await self._is_lost_within(wire, self.timings.canary):
                await self._check(wire)
            raise ConnectionError("the listening connection was closed")
        finally:
            self._wire = None
            await wire.close()

    async def _is_lost_within(self, wire: Wire, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds * random.uniform(0.8, 1.2)):  # noqa: S311 -- spread
                await wire.lost.wait()
        except TimeoutError:
            return False
        return True

    async def _check(self, wire: Wire) -> None:
        """Check that notifications still arrive and that PostgreSQL's queue of them has room."""
        used = await wire.ask(query("queue_usage"), timeout=self.timings.query_timeout)
        await wire.prove(self.reads, timeout=self.timings.query_timeout)
        if used > self.timings.full_queue:
            self._degrade(f"PostgreSQL's notification queue is {used:.0%} full")
        elif self.state.mode != "listening":
            self._connect(wire)

    def _connect(self, wire: Wire) -> None:
        self._wire = wire
        self.state.mode, self.state.reason = "listening", None
        self.state.epoch += 1
        self.hooks.connected(epoch=self.state.epoch)
        for receiver in tuple(self._receivers):
            receiver.connected()

    def _degrade(self, reason: str, *, level: int = logging.WARNING) -> None:
        was_listening = self.state.mode == "listening"
        if self.state.reason != reason:
            name = self.engine.url.database
            logger.log(level, "LISTEN is unavailable for database %s, polling: %s", name, reason)
        self.state.mode, self.state.reason = "polling", reason
        if was_listening:
            self.hooks.degraded(reason=reason)
            for receiver in tuple(self._receivers):
                receiver.degraded()

    def _received(self, channel: str, payload: str) -> None:
        self.state.notifications += 1
        for receiver in tuple(self._receivers):
            receiver.received(channel, payload)


def _report(task: asyncio.Task[None], first: asyncio.Future[None] | None) -> None:
    """Pass the error to the task that waits for the first connection."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("the listener has ended: polling from now on", exc_info=error)
    if first is not None and not first.done():
        first.set_exception(error or ConnectionError("the listener was stopped"))


def _identity(engine: AsyncEngine) -> object:
    return engine.sync_engine.dialect  # shared with engines derived by execution_options()
