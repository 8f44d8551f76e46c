"""The outlet of one database in one process: its feed, its fan-out, and each reader's way in."""

import asyncio
import logging
import signal
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import NotWatchedError
from rowsignal.hooks import Hooks
from rowsignal.listener import OUTAGES
from rowsignal.sse import frames
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.audiences import Audience, AudienceKey
from rowsignal.sse.delivery.buffers import ConflatingReader, Reader
from rowsignal.sse.delivery.fanout import FanOut
from rowsignal.sse.delivery.joining import (
    FROM_NOW,
    Beginning,
    Entrance,
    GapError,
    enter_by_log,
    enter_live,
)
from rowsignal.sse.delivery.response import EventStream
from rowsignal.sse.delivery.sources import Sources
from rowsignal.sse.limits import Limits

logger = logging.getLogger("rowsignal.sse")

PULSE = 0.25
LINGER = 30.0
CATCHING_UP = 4
SNAPSHOTS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one reader gets, checked and granted."""

    views: tuple[TableView, ...]
    principal: str = "anonymous"
    beginning: Beginning = FROM_NOW
    conflate: bool = False
    expires_at: float | None = None


class Outlet:
    """Streams changes of some tables to readers. Starts with the first, stops after the last."""

    def __init__(
        self,
        engine: AsyncEngine,
        exposures: Mapping[str, Exposure],
        limits: Limits | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        self.engine = engine
        self.exposures = exposures
        self.limits = limits or Limits()
        self.fanout = FanOut(exposures, self.limits, hooks)
        self.sources = Sources(engine, exposures, self.fanout)
        self._open: set[Reader] = set()
        self._pulse: asyncio.Task[None] | None = None
        turns, snapshots = asyncio.Semaphore(CATCHING_UP), asyncio.Semaphore(SNAPSHOTS)
        self._entrance = Entrance(engine, self.fanout, self.sources, turns, snapshots)

    def close_streams(self) -> None:
        """Say goodbye to all readers: call it when a shutdown begins, not when it has ended.

        Servers wait for open answers before they tell an application that it is over.
        """
        self.fanout.close()

    async def aclose(self) -> None:
        """End everything; leave no task and no connection."""
        self.close_streams()
        if self._pulse is not None:
            self._pulse.cancel()
            with suppress(asyncio.CancelledError):
                await self._pulse
            self._pulse = None
        await self.sources.stop()

    async def open(self, order: Order) -> EventStream:
        """Admit a reader and return the answer to its request.

        Raises `ReaderLimitError`, and what keeps changes from coming.
        """
        self.fanout.admit(order.principal)
        try:
            await self.sources.start([view.name for view in order.views])
            self._keep_pulse()
            return self._answer(order)
        except BaseException:
            self.fanout.dismiss(order.principal)
            raise

    def _answer(self, order: Order) -> EventStream:
        reader = (ConflatingReader if order.conflate else Reader)(self.limits.buffer)
        is_logged = self.sources.are_logged(view.name for view in order.views)
        key = AudienceKey(order.views, with_id=is_logged, known=order.beginning.after is None)
        opening = self._opening(order, reader, self.fanout.private(key))
        expiry = self._expire(reader, order.expires_at)
        self._open.add(reader)

        def closed() -> None:
            self._open.discard(reader)
            self.fanout.detach(reader, key)
            self.fanout.dismiss(order.principal)
            if expiry is not None:
                expiry.cancel()

        return EventStream(opening, reader, closed)

    async def _opening(
        self, order: Order, reader: Reader, audience: Audience
    ) -> AsyncGenerator[bytes, None]:
        """Yield what the reader gets first; where that can not be, say whether to come back."""
        enter = enter_by_log if audience.key.with_id else enter_live
        try:
            async with aclosing(enter(self._entrance, order.beginning, reader, audience)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except GapError as gap:
            reader.close(frames.reset(str(gap)))
        except (*OUTAGES, NotWatchedError) as error:
            logger.warning("a stream could not begin: %s", error)
            reader.close(frames.bye("database", self.limits.retry))

    def _expire(self, reader: Reader, expires_at: float | None) -> asyncio.TimerHandle | None:
        if expires_at is None:
            return None
        bye = frames.bye("token expired", self.limits.retry)
        loop = asyncio.get_running_loop()
        return loop.call_later(max(expires_at - time.time(), 0), reader.close, bye)

    def _keep_pulse(self) -> None:
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.create_task(self._beat(), name="rowsignal sse pulse")

    async def _beat(self) -> None:
        """Send heartbeats, notice a server that stops, and stop after the last reader."""
        loop = asyncio.get_running_loop()
        due, seen_reader = loop.time() + self.limits.heartbeat, loop.time()
        while loop.time() - seen_reader < LINGER:
            await asyncio.sleep(PULSE)
            if self.fanout.readers:
                seen_reader = loop.time()
            if not self.fanout.is_closing and server_is_stopping():
                self.close_streams()
            self._drop_stalled(loop.time() - self.limits.stall)
            if loop.time() >= due:
                due = loop.time() + self.limits.heartbeat
                self.fanout.beat(self.sources.log.position)
        await self.sources.stop()

    def _drop_stalled(self, before: float) -> None:
        """Give up on clients that have taken nothing for too long: they hold places."""
        for reader in tuple(self._open):
            if reader.writing_since is not None and reader.writing_since < before:
                reader.give_up()


def server_is_stopping() -> bool:
    """Tell whether the uvicorn server of this process is on its way out.

    It waits for open streams before it tells the application, so it has to be asked: it is found
    as the owner of the SIGTERM handler. Other servers call `Outlet.close_streams`.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))
