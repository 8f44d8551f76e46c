"""The outlet: the feeds and streams of one database in one process."""

import asyncio
import logging
import signal
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import NotWatchedError, UnsupportedError
from rowsignal.hooks import Hooks
from rowsignal.listener import OUTAGES
from rowsignal.postgres.errors import describe
from rowsignal.sse import frames
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.buffers import ConflatingReader, Reader
from rowsignal.sse.delivery.fanout import FanOut
from rowsignal.sse.delivery.feeds import TableFeed
from rowsignal.sse.delivery.groups import GroupKey, SubscriberGroup
from rowsignal.sse.delivery.joining import (
    FROM_NOW,
    Beginning,
    BusyError,
    GapError,
    StartContext,
    begin_by_log,
    begin_live,
)
from rowsignal.sse.delivery.response import EventStream
from rowsignal.sse.delivery.sources import Sources
from rowsignal.sse.delivery.turns import FairTurns
from rowsignal.sse.limits import Limits
from rowsignal.streams.change_source import ChangeSource, PostgresSource

logger = logging.getLogger("rowsignal.sse")

NO_ROWS = (
    "This gateway has no database to read the current rows from: ask without `snapshot`, or start"
    " it with a database."
)
PULSE_INTERVAL = 0.25
CATCHING_UP = 4  # reads of the log at a time
SNAPSHOTS = 4  # at a time; each is a connection with an open transaction
PRINCIPALS_KNOWN = 1000  # whose resets are remembered
SNAPSHOTS_EACH = SNAPSHOTS - 1  # of one principal: others never wait for its readers alone


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamRequest:
    """The request of one reader, checked against its grant."""

    views: tuple[TableView, ...]
    principal: str = "anonymous"
    beginning: Beginning = FROM_NOW
    conflate: bool = False
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class OpenStream:
    """One stream that is open: what it shows to which principal, and since when."""

    principal: str
    tables: tuple[str, ...]
    reader: Reader
    began_at: float


class Outlet:
    """Streams changes of some tables to readers, from the first reader to the last."""

    def __init__(
        self,
        engine: AsyncEngine | ChangeSource,
        exposures: Mapping[str, Exposure],
        limits: Limits | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Stream what an engine's database tells, or another source of its changes."""
        source = PostgresSource(engine) if isinstance(engine, AsyncEngine) else engine
        self.source: ChangeSource = source
        self.engine = source.engine
        self.exposures = exposures
        self.limits = limits or Limits()
        self.fanout = FanOut(source, exposures, self.limits, hooks)
        self.sources = Sources(source, exposures)
        self._hooks = hooks or Hooks()
        self._open: dict[Reader, OpenStream] = {}
        self._resets: OrderedDict[str, int] = OrderedDict()
        self._pulse: asyncio.Task[None] | None = None
        self._turns = FairTurns(CATCHING_UP)
        self._snapshots = FairTurns(SNAPSHOTS, SNAPSHOTS_EACH)

    @property
    def streams(self) -> list[OpenStream]:
        """The streams that are open, the oldest first."""
        return list(self._open.values())

    def resets_of(self, principal: str) -> int:
        """Return how often streams of a principal were reset, of the last so many principals."""
        now = sum(it.reader.resets for it in self.streams if it.principal == principal)
        return now + self._resets.get(principal, 0)

    def _remember(self, stream: OpenStream) -> None:
        if stream.reader.resets:
            before = self._resets.pop(stream.principal, 0)
            self._resets[stream.principal] = before + stream.reader.resets
            while len(self._resets) > PRINCIPALS_KNOWN:
                self._resets.popitem(last=False)

    def close_streams(self) -> None:
        """End all streams. Call it when a shutdown begins, not when it has ended.

        Servers wait for open responses before they tell the application of the shutdown.
        """
        self.fanout.close()
        # Readers that still begin are in no group yet.
        for reader in tuple(self._open):
            reader.close(frames.bye("shutdown", self.limits.retry))

    async def aclose(self) -> None:
        """End all streams, tasks and connections."""
        self.close_streams()
        if self._pulse is not None:
            self._pulse.cancel()
            with suppress(asyncio.CancelledError):
                await self._pulse
            self._pulse = None
        await self.fanout.aclose()

    async def open(self, request: StreamRequest) -> EventStream:
        """Add a reader and return the response to its request.

        Raises `ReaderLimitError`, `PositionError` for a malformed position, `UnsupportedError` for
        a snapshot without a database, and the error that prevents a feed.
        """
        if request.beginning.after is not None:
            self.source.check_position(request.beginning.after)
        elif request.beginning.snapshot and self.engine is None:
            raise UnsupportedError(NO_ROWS)
        self.fanout.acquire(request.principal)
        try:
            feed = await self.fanout.feed_of(view.name for view in request.views)
            self._keep_pulse()
            return self._response(request, feed)
        except BaseException:  # also of a client that leaves while its feed opens
            self.fanout.release(request.principal)
            raise

    def _response(self, request: StreamRequest, feed: TableFeed) -> EventStream:
        reader = (ConflatingReader if request.conflate else Reader)(self.limits.max_buffer_bytes)
        key = GroupKey(
            request.views,
            with_id=feed.changes.is_logged,
            known=request.beginning.after is None,
            guarded=feed.guarded,
        )
        start = StartContext(self.limits, feed, request.principal, self._turns, self._snapshots)
        opening = self._opening(start, request.beginning, reader, feed.distribution.new_group(key))
        expiry = self._expire(reader, request.expires_at)
        names = tuple(view.name for view in request.views)
        self._open[reader] = OpenStream(request.principal, names, reader, time.time())
        feed.acquire()

        def closed() -> None:
            self._remember(self._open.pop(reader))
            feed.distribution.detach(reader, key)
            feed.release()
            self.fanout.release(request.principal)
            if expiry is not None:
                expiry.cancel()

        return EventStream(opening, reader, closed)

    async def _opening(
        self, start: StartContext, beginning: Beginning, reader: Reader, group: SubscriberGroup
    ) -> AsyncGenerator[bytes, None]:
        """Yield the first frames of a reader; on failure, tell it whether to come back."""
        begin = begin_by_log if group.key.with_id else begin_live
        tables = ", ".join(group.row_filters)
        try:
            async with aclosing(begin(start, beginning, reader, group)) as chunks:
                async for chunk in chunks:
                    yield chunk
        except GapError as gap:
            reader.close(frames.reset(str(gap)))
        except BusyError:
            reader.close(frames.bye("busy", self.limits.retry))
        except (*OUTAGES, NotWatchedError) as error:
            logger.warning("a stream of %s could not start: %s", tables, describe(error))
            reader.close(frames.bye("database", self.limits.retry))
        except Exception:
            logger.exception("a stream of %s could not start", tables)
            reader.close(frames.bye("error", self.limits.retry))

    def _expire(self, reader: Reader, expires_at: float | None) -> asyncio.TimerHandle | None:
        if expires_at is None:
            return None
        bye = frames.bye("token expired", self.limits.retry)
        loop = asyncio.get_running_loop()
        return loop.call_later(max(expires_at - time.time(), 0), reader.close, bye)

    def _keep_pulse(self) -> None:
        if self._pulse is None or self._pulse.done():
            self._pulse = asyncio.create_task(self._run_pulse(), name="rowsignal sse pulse")

    async def _run_pulse(self) -> None:
        """Send heartbeats, end the streams when the server stops, and end after the last feed."""
        loop = asyncio.get_running_loop()
        due = loop.time() + self.limits.heartbeat
        while self.fanout.has_feeds:
            await asyncio.sleep(PULSE_INTERVAL)
            try:
                if not self.fanout.is_closing and server_is_stopping():
                    self.close_streams()
                self._drop_stalled(loop.time() - self.limits.write_timeout)
                if loop.time() >= due:
                    due = loop.time() + self.limits.heartbeat
                    self.fanout.beat()
                await self.fanout.close_idle()
            except Exception as error:
                logger.exception("sending heartbeats to the streams failed; the task goes on")
                self._hooks.task_restarted(task="sse pulse", reason=type(error).__name__)

    def _drop_stalled(self, before: float) -> None:
        """Abort the streams of clients that have accepted no bytes for the write timeout."""
        for reader in tuple(self._open):
            if reader.writing_since is not None and reader.writing_since < before:
                reader.give_up()


def server_is_stopping() -> bool:
    """Tell whether the uvicorn server of this process is shutting down.

    uvicorn waits for open streams before it tells the application, so its state is polled; it is
    found as the owner of the SIGTERM handler. Other servers call `Outlet.close_streams`.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))
