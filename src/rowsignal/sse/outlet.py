"""The outlet of one database in one process: its feed, its fan-out, and each reader's way in."""

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.changes import Reset
from rowsignal.hooks import Hooks
from rowsignal.positions import Snapshot
from rowsignal.sse import frames
from rowsignal.sse.exposures import Exposure
from rowsignal.sse.fanout import UNKNOWN, Audience, AudienceKey, FanOut, Limits
from rowsignal.sse.feed import Feed, snapshot_of
from rowsignal.sse.readers import ConflatingReader, Reader
from rowsignal.sse.rows import all_rows, pin_settings
from rowsignal.sse.views import TableView, UnknownHistoryError

PULSE = 0.25
LINGER = 30.0
CATCHING_UP = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one reader gets, checked and granted."""

    views: tuple[TableView, ...]
    principal: str = "anonymous"
    after: str | None = None
    is_lenient: bool = False
    snapshot: bool = False
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
        self.feed = Feed(engine, exposures, self.fanout)
        self._pulse: asyncio.Task[None] | None = None
        self._turns = asyncio.Semaphore(CATCHING_UP)

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
        await self.feed.stop()

    async def open(self, order: Order) -> AsyncGenerator[bytes, None]:
        """Admit a reader and return its stream; call `dismiss` with the order when it is over.

        Raises `ReaderLimitError`, and what keeps the feed from starting.
        """
        self.fanout.admit(order.principal)
        try:
            await self.feed.start({view.name for view in order.views})
            self._keep_pulse()
        except BaseException:
            self.dismiss(order)
            raise
        return self._stream(order)

    def dismiss(self, order: Order) -> None:
        """Give a reader's place to others."""
        self.fanout.dismiss(order.principal)

    async def _stream(self, order: Order) -> AsyncGenerator[bytes, None]:
        limits = self.limits
        reader = (ConflatingReader if order.conflate else Reader)(order.principal, limits.buffer)
        logged = self.feed.logs([view.name for view in order.views])
        key = AudienceKey(order.views, logged, known=order.after is None)
        audience = self.fanout.private(key)
        expiry = self._expire(reader, order.expires_at)
        try:
            with_place = logged and order.after is None and not order.snapshot
            yield frames.retry(limits.retry) + frames.heartbeat(
                limits.heartbeat, self.feed.position if with_place else None
            )
            way_in = self._by_log if logged else self._directly
            async for chunk in way_in(order, reader, audience):
                yield chunk
            while waiting := await reader.take():
                yield waiting
        finally:
            self.fanout.detach(reader, key)
            if expiry is not None:
                expiry.cancel()

    def _expire(self, reader: Reader, expires_at: float | None) -> asyncio.TimerHandle | None:
        if expires_at is None:
            return None
        bye = frames.bye("token expired", self.limits.retry)
        loop = asyncio.get_running_loop()
        return loop.call_later(max(expires_at - time.time(), 0), reader.close, bye)

    async def _directly(
        self, order: Order, reader: Reader, audience: Audience
    ) -> AsyncIterator[bytes]:
        """Show what comes from now on; a snapshot is read while that waits in the buffer."""
        if order.after is not None:
            reader.close(frames.reset("Tables without a change log can not be resumed."))
            return
        self.fanout.attach(reader, audience)
        if order.snapshot:
            async with self._turns, self.engine.connect() as plain:
                connection = await plain.execution_options(isolation_level="REPEATABLE READ")
                await pin_settings(connection, is_local=True)
                rows = 0
                for view in order.views:
                    lens = audience.lenses[view.name]
                    async for page in all_rows(connection, lens.exposure, view):
                        rows += len(page)
                        yield b"".join(lens.snapshot(page))
            yield frames.snapshot_end([view.name for view in order.views], rows, None)

    async def _by_log(
        self, order: Order, reader: Reader, audience: Audience
    ) -> AsyncIterator[bytes]:
        """Show the rows or the changes that lie behind, then join those who are up to date."""
        after = order.after
        if after is None and order.snapshot:
            async with self._turns, self.feed.log.snapshot() as snapshot:
                await pin_settings(snapshot.connection, is_local=True)
                rows = 0
                for view in order.views:
                    lens = audience.lenses[view.name]
                    async for page in all_rows(snapshot.connection, lens.exposure, view):
                        rows += len(page)
                        yield b"".join(lens.snapshot(page))
                after = snapshot.position
            yield frames.snapshot_end([view.name for view in order.views], rows, after)
        if after is None:
            self.fanout.attach(reader, audience)
            return
        seen: Snapshot | None = None
        while seen is None:
            chunk, after, seen = await self._catch_up(audience, after)
            if after is None:
                reader.close(chunk)
                return
            if chunk:
                yield chunk
        self.fanout.attach(reader, audience, seen)

    async def _catch_up(
        self, audience: Audience, after: str
    ) -> tuple[bytes, str | None, Snapshot | None]:
        """Return the next frames after a position, the position behind them, and its snapshot.

        Without a position the frames are the last; without a snapshot there is more to read.
        """
        if self.feed.is_at(after):
            return b"", after, snapshot_of(after)
        async with self._turns:
            names = tuple(_pair(lens.exposure) for lens in audience.lenses.values())
            batch = await self.feed.log.read(after, tables=names)
            if isinstance(batch, Reset):
                return frames.reset(batch.reason), None, None
            more = {name: lens.filter_columns for name, lens in audience.lenses.items()}
            events = await self.feed.values.events(batch, more)
        try:
            chunk = b"".join(piece for _, piece in audience.show(events))
        except UnknownHistoryError:
            return frames.reset(UNKNOWN), None, None
        if not batch.is_complete:
            return chunk, batch.position, None
        return chunk, batch.position, snapshot_of(batch.position)

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
            if loop.time() >= due:
                due = loop.time() + self.limits.heartbeat
                self.fanout.beat(self.feed.position)
        await self.feed.stop()


def _pair(exposure: Exposure) -> tuple[str, str]:
    return exposure.table.schema or "public", exposure.table.name


def server_is_stopping() -> bool:
    """Tell whether the uvicorn server of this process is on its way out.

    It waits for open streams before it tells the application, so it has to be asked: it is found
    as the owner of the SIGTERM handler. Other servers call `Outlet.close_streams`.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))
