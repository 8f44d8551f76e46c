"""The connection on which a process listens to a database: what it serves, arms and survives."""

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self, TypeVar

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.hooks import Hooks, ListenerMode, guarded
from rowsignal.listener.connection import CanaryError, Wire
from rowsignal.payload import LOCK_CLASS
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import describe, is_hopeless, sqlstate
from rowsignal.postgres.read_connections import ReadConnections
from rowsignal.postgres.statements import query

logger = logging.getLogger("rowsignal.listener")

# What a server, a driver or a network says when it is not there just now.
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
        """Note that notifications arrive from now on; nothing is armed yet."""

    def degraded(self) -> None:
        """Note that notifications no longer arrive; nothing is armed any more."""

    def received(self, channel: str, payload: str) -> None:
        """Take one notification."""

    async def stopped(self) -> None:
        """End what is no longer needed: the listener was closed."""


def reconnect_delays() -> Iterator[float]:
    """Yield the seconds before each attempt to reconnect: doubling to 30, with jitter."""
    ceiling = 0.05
    while True:
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- spreads clients, guards nothing
        ceiling = min(ceiling * 2, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """How patient a listener is, in seconds.

    `canary` is how often an idle connection proves that notifications still come through,
    `answer` how long anything may take before the connection counts as dead, `linger` how long
    the connection stays after its last user has gone, `full_queue` the share of PostgreSQL's
    notification queue above which notifications are no longer counted on.
    """

    canary: float = 20.0
    answer: float = 5.0
    linger: float = 5.0
    full_queue: float = 0.4
    delays: Callable[[], Iterator[float]] = reconnect_delays


@dataclass(slots=True)
class ListenerState:
    """What a listener does.

    `polling` means that notifications do not arrive, for the given `reason`. `epoch` counts the
    connections that worked, `notifications` what arrived on them.
    """

    mode: ListenerMode = "stopped"
    reason: str | None = None
    epoch: int = 0
    notifications: int = 0


@dataclass(frozen=True, slots=True)
class Lease:
    """A hold on a bucket; PostgreSQL counts holds, and drops them with the connection."""

    bucket: int
    wire: Wire
    timeout: float

    async def release(self) -> None:
        """Give the hold back: after the last one writers no longer notify."""
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
        self.own = SideConnection(beside(self.engine, self.listen_url))
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
        """Return what lives and ends with this listener, one of a kind; make it at first."""
        if kind not in self._companions:
            self._companions[kind] = make()
        found: Companion = self._companions[kind]
        return found

    async def __aenter__(self) -> Self:
        """Connect, or raise what the first connection raises.

        Where PostgreSQL answers, and only notifications do not arrive, it begins by polling.
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
        """Stop listening; waits that are left poll from now on."""
        await self.close()

    def attach(self, receiver: Receiver) -> None:
        """Work for `receiver`; start for the first one."""
        self._receivers.add(receiver)
        if self._retirement is not None:
            self._retirement.cancel()
            self._retirement = None
        self._start()

    def detach(self, receiver: Receiver) -> None:
        """Stop working for `receiver`; after the last one, stop altogether soon."""
        self._receivers.discard(receiver)
        if self._receivers or self._is_kept_open or self._retirement is not None:
            return
        loop = asyncio.get_running_loop()
        self._retirement = loop.call_later(self.timings.linger, self._retire)

    async def arm(self, bucket: int) -> "Lease | None":
        """Take the shared advisory lock that makes triggers notify, and return the lease on it.

        Returns None where notifications do not arrive, or another session holds the lock
        exclusively: poll then. What triggers decided before the lock was there is for the caller:
        drain writers. See the PostgreSQL manual, "Advisory Lock Functions".
        """
        for delay in PROBE_COLLISION_DELAYS:  # a writer's own probe is gone in microseconds
            await asyncio.sleep(delay)
            wire = self._wire
            if wire is None or self.state.mode != "listening":
                return None
            if await wire.ask(query("arm"), LOCK_CLASS, bucket, timeout=self.timings.answer):
                return Lease(bucket, wire, self.timings.answer)
        return None

    async def close(self) -> None:
        """Close the connections; leave no task."""
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
        await asyncio.gather(self.own.close(), self.reads.close())

    def _start(self, first: asyncio.Future[None] | None = None) -> None:
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            self._task = loop.create_task(self._run(first), name="rowsignal listener")
            self._task.add_done_callback(partial(_report, first=first))

    def _retire(self) -> None:
        self._retirement = None
        if not self._receivers and not self._is_kept_open:
            _registry.drop(self)  # now: the next wait gets a listener that is not about to close
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self.close(), name="rowsignal listener closing")

    async def _run(self, first: asyncio.Future[None] | None) -> None:
        try:
            await self._keep_serving(first)
        finally:
            self._degrade("the listener was stopped", level=logging.INFO)
            self.state.mode = "stopped"
            _registry.drop(self)
            await asyncio.gather(self.own.close(), self.reads.close())
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
            if loop.time() - began > STEADY:  # it worked for a while: start over, soon
                delays = self.timings.delays()
            await asyncio.sleep(next(delays))

    def _is_first(self, error: Exception, first: asyncio.Future[None] | None) -> bool:
        """Degrade; or tell whether it is the first connection, whose errors are the caller's."""
        if first is None or first.done() or isinstance(error, CanaryError):
            self._degrade(describe(error))
            if first is not None and not first.done():  # polling will do for a beginning
                first.set_result(None)
            return False
        first.set_exception(error)
        return True

    def _tell(self, error: Exception) -> None:
        """Say once what failed unforeseen; what a server or a network says is no such thing."""
        if sqlstate(error) is not None or not is_hopeless(error):
            return
        cause = describe(error)
        if cause != self._failure:
            logger.error("the listener has failed and begins again: %s", cause, exc_info=error)
        self._failure = cause
        self.hooks.task_restarted(task="listener", reason=cause)

    async def _serve(self, first: asyncio.Future[None] | None) -> None:
        """Listen on one connection until it is lost; raise why it could not be, or no longer is."""
        if self.state.mode == "stopped":
            self.state.mode = "connecting"
        answer = self.timings.answer
        wire = await Wire.open(self._wire_engine, self._received, timeout=answer)
        self.reads.attempts.forgive()  # the server answers: no need to space attempts
        try:
            await wire.prove(self.reads, timeout=answer)
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
        """See that notifications still arrive, and that PostgreSQL's queue of them is not full."""
        used = await wire.ask(query("queue_usage"), timeout=self.timings.answer)
        await wire.prove(self.reads, timeout=self.timings.answer)
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
    """Fail what waits for a first connection that will not come."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("the listener has ended: polling from now on", exc_info=error)
    if first is not None and not first.done():
        first.set_exception(error or ConnectionError("the listener was stopped"))


def _identity(engine: AsyncEngine) -> object:
    return engine.sync_engine.dialect  # shared with engines derived by execution_options()
