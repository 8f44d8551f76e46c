"""The listener: one source of hints per engine and event loop, with reconnects and leases."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, Self, TypeVar, cast

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.hooks import Hooks, ListenerMode, guarded
from rowsignal.identifiers import QualifiedName
from rowsignal.listener.hints import (
    HintConnection,
    HintOrigin,
    HintsUnavailableError,
    Lease,
    RelayedCapture,
    Target,
)
from rowsignal.listener.origins import NotificationOrigin, Origin, RelayOrigin
from rowsignal.listener.registry import Registry
from rowsignal.listener.timings import Timings
from rowsignal.nats.subjects import is_nats
from rowsignal.payload import Hint
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import describe, is_hopeless, sqlstate
from rowsignal.postgres.read_connections import ReadConnections

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

STEADY = 5.0  # seconds a connection must last before the next failure counts as a first one


class Receiver(Protocol):
    """Callback interface of a listener. Methods must not block."""

    def connected(self) -> None:
        """Handle a new connection: notifications arrive from now on; nothing is armed yet."""

    def degraded(self) -> None:
        """Handle the loss of notifications; nothing is armed any more."""

    def received(self, channel: str, payload: str) -> None:
        """Handle one notification."""

    def hinted(self, hint: Hint) -> None:
        """Handle one hint that came over NATS."""

    def missed(self) -> None:
        """Handle that hints were lost on the way: any row may have changed."""

    async def stopped(self) -> None:
        """Handle the end of the listener."""


Companion = TypeVar("Companion", bound=Receiver)


@dataclass(slots=True)
class ListenerState:
    """The state of a listener.

    `polling` means that hints do not arrive, for the given `reason`. `origin` is what they come
    from: PostgreSQL's notifications, or a relay's messages in NATS. `epoch` counts the connections
    that worked, `notifications` what arrived on them. `unrelayed` names the tables that are polled
    because no relay carries them.
    """

    mode: ListenerMode = "stopped"
    reason: str | None = None
    epoch: int = 0
    notifications: int = 0
    origin: HintOrigin = "postgresql"
    unrelayed: frozenset[str] = frozenset()


@dataclass(eq=False)
class Listener:
    """One source of hints for an engine, shared by all waits and streams of an event loop.

    Waiting starts it by itself. Open one in an application's lifespan to keep it warm, to
    raise what the first connection raises, or to give it another address:

        async with Listener(engine, listen_url="postgresql+asyncpg://primary/app"):
            ...

    `listen_url` is for engines that connect through a transaction pooler or to a standby, where
    LISTEN does not work (PostgreSQL manual, LISTEN and "Hot Standby"); rows are then read through
    that address, too. With an address of NATS (`nats://...`, several with commas between them)
    nothing LISTENs: a relay's messages are the hints, and rows are read as the engine connects.
    """

    engine: AsyncEngine
    listen_url: str | None = field(default=None, repr=False)  # it may hold a password
    hooks: Hooks = field(default_factory=Hooks)
    timings: Timings = field(default_factory=Timings)

    def __post_init__(self) -> None:
        self.hooks = guarded(self.hooks)
        url, self.read_url = self.listen_url, None
        self._origin: Origin
        if url is not None and is_nats(url):
            self._origin = RelayOrigin(url)
        else:
            self.read_url = url
            self._origin = NotificationOrigin(beside(self.engine, url))
        self.state = ListenerState(origin=self._origin.name)
        self.side = SideConnection(beside(self.engine, self.read_url))
        self.reads = ReadConnections(lambda: beside(self.engine, self.read_url))
        self._companions: dict[type[Any], Receiver] = {}
        self._failure = ""
        self._wire: HintConnection | None = None
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
        return cast("Companion", self._companions[kind])

    async def __aenter__(self) -> Self:
        """Connect; raise the error of the first connection.

        If PostgreSQL answers and only notifications do not arrive, the listener starts by polling.
        """
        self.register()
        first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._start(first)
        try:
            await first
        except BaseException:
            await self.close()
            raise
        return self

    def register(self) -> None:
        """Serve the waits of the running event loop; connect with the first one, until `close`."""
        _registry.put(self)
        self._is_kept_open = True

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

    @property
    def is_relayed(self) -> bool:
        """Tell whether hints are a relay's messages in NATS."""
        return self.state.origin == "nats"

    async def arm(self, target: Target) -> "Lease | None":
        """Make hints of a target arrive, and return the lease on it; None: the caller polls."""
        wire = self._wire
        if wire is None or self.state.mode != "listening":
            return None
        return await wire.arm(target, self.timings.query_timeout)

    async def relayed(self, name: QualifiedName) -> RelayedCapture | None:
        """Return how the relay learns of a table's changes; None where it does not carry them."""
        wire = self._wire
        if wire is None or self.state.mode != "listening":
            return None
        found = await wire.capture_of(name, self.timings.query_timeout)
        self._note_relayed(".".join(name), is_relayed=found is not None)
        return found

    def late_writers(self) -> frozenset[str]:
        """Return what the relay may still fail to report; see `HintConnection`."""
        return frozenset() if self._wire is None else self._wire.late_writers()

    async def close(self) -> None:
        """Close the connections and end all tasks."""
        self._is_kept_open = False
        _registry.drop(self)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        # Companions that are not attached may have connections from what they read before.
        for receiver in {*self._receivers, *self._companions.values()}:
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
            # Now, so that the next wait creates a listener instead of using this one.
            _registry.drop(self)
            loop = asyncio.get_running_loop()
            self._closing = loop.create_task(self.close(), name="rowsignal listener closing")

    async def _run(self, first: asyncio.Future[None] | None) -> None:
        try:
            await self._keep_serving(first)
        finally:
            self._degrade("the listener was stopped", level=logging.INFO)
            self.state.mode = "stopped"
            _registry.drop(self)
            await asyncio.gather(self.side.close(), self.reads.close(), self._origin.close())

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
        if first is None or first.done() or isinstance(error, HintsUnavailableError):
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
        """Take hints from one connection until it is lost; raise the cause."""
        if self.state.mode == "stopped":
            self.state.mode = "connecting"
        wire = await self._origin.open(self.reads, self, timeout=self.timings.query_timeout)
        self.reads.attempts.forgive()  # the server answers: no need to space attempts
        try:
            await self._follow(wire, first)
        finally:
            self._wire = None
            await wire.close()

    async def _follow(self, wire: HintConnection, first: asyncio.Future[None] | None) -> None:
        async with aclosing(wire.states(self.reads, self.timings)) as states:
            async for reason in states:
                self._enter(wire, reason)
                if first is not None and not first.done():
                    first.set_result(None)
                if self.is_relayed:  # with LISTEN there is a connection in any case
                    await self.reads.close_idle(self.timings.idle_timeout)

    def _enter(self, wire: HintConnection, reason: str | None) -> None:
        if reason is not None:
            self._degrade(reason)
        elif self.state.mode != "listening":
            self._connect(wire)

    def _connect(self, wire: HintConnection) -> None:
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
            text = "%s unavailable for database %s, polling: %s"
            logger.log(level, text, self._origin.label, name, reason)
        self.state.mode, self.state.reason = "polling", reason
        if was_listening:
            self.hooks.degraded(reason=reason)
            for receiver in tuple(self._receivers):
                receiver.degraded()

    def _note_relayed(self, label: str, *, is_relayed: bool) -> None:
        known = self.state.unrelayed
        if is_relayed:
            self.state.unrelayed = known - {label}
        elif label not in known:
            self.state.unrelayed = known | {label}
            logger.warning("%s is not carried by a relay, polling", label)

    def received(self, channel: str, payload: str) -> None:
        """Pass a notification on."""
        self.state.notifications += 1
        for receiver in tuple(self._receivers):
            receiver.received(channel, payload)

    def hinted(self, hint: Hint, *, is_read: bool) -> None:
        """Pass a hint on that came over NATS."""
        self.state.notifications += 1
        self.hooks.notified(accepted=is_read)
        for receiver in tuple(self._receivers):
            receiver.hinted(hint)

    def missed(self) -> None:
        """Pass on that hints were lost."""
        for receiver in tuple(self._receivers):
            receiver.missed()

    def rearm(self) -> None:
        """Let everything that is watched be armed again: other tables are relayed now."""
        for receiver in tuple(self._receivers):
            receiver.connected()


_registry = Registry(Listener)


def _report(task: asyncio.Task[None], first: asyncio.Future[None] | None) -> None:
    """Pass the error to the task that waits for the first connection."""
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("the listener has ended: polling from now on", exc_info=error)
    if first is not None and not first.done():
        first.set_exception(error or ConnectionError("the listener was stopped"))
