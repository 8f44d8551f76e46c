"""The fan-out: the streams of one process, counted by principal, and their feeds."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from rowsignal.exceptions import ReaderLimitError
from rowsignal.hooks import Hooks
from rowsignal.sse import frames
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.delivery.context import Counts, DeliveryContext
from rowsignal.sse.delivery.feeds import TableFeed
from rowsignal.sse.limits import Limits
from rowsignal.sse.sharing import ProcessReaderCounts, ReaderCounts
from rowsignal.streams.change_source import ChangeSource


class FanOut:
    """Counts the streams, and opens one feed for each set of tables."""

    def __init__(
        self,
        source: ChangeSource,
        exposures: Mapping[str, Exposure],
        limits: Limits,
        hooks: Hooks | None = None,
        counts: ReaderCounts | None = None,
    ) -> None:
        self.exposures = exposures
        self.is_closing = False
        self.readers = 0  # open streams of this process
        self._source = source
        self._context = DeliveryContext(limits, hooks or Hooks())
        self._principals = ProcessReaderCounts() if counts is None else counts
        self._feeds: dict[frozenset[str], TableFeed] = {}
        self._starting: dict[frozenset[str], asyncio.Lock] = {}

    @property
    def limits(self) -> Limits:
        """The limits of this process."""
        return self._context.limits

    @property
    def counts(self) -> Counts:
        """The numbers of delivered changes."""
        return self._context.counts

    @property
    def flushed(self) -> Callable[[Sequence[Event]], None]:
        """The function that is called with the events of each write."""
        return self._context.flushed

    @flushed.setter
    def flushed(self, callback: Callable[[Sequence[Event]], None]) -> None:
        self._context.flushed = callback

    @property
    def has_feeds(self) -> bool:
        """Tell whether there are open feeds."""
        return bool(self._feeds)

    def readers_of(self, table: str) -> int:
        """Return the number of open streams of a table."""
        feeds = (feed for names, feed in self._feeds.items() if table in names)
        return sum(feed.distribution.readers for feed in feeds)

    async def acquire(self, principal: str) -> None:
        """Count one more stream; raise `ReaderLimitError` if there are too many."""
        most, each = self.limits.max_streams, self.limits.max_streams_per_principal
        if self.is_closing:
            raise ReaderLimitError("The service is stopping; come back in a moment.")
        if self.readers >= most:
            raise ReaderLimitError(f"All {most} streams are taken; try again later.")
        self.readers += 1  # before the wait, during which others come
        is_granted = False
        try:
            is_granted = await self._principals.acquire(principal, each)
        finally:
            self.readers -= not is_granted
        if not is_granted:
            raise ReaderLimitError(
                f"You have {each} streams open, which is as many as one may have; close some, or"
                " ask for several tables in one.",
                is_own=True,
            )

    def release(self, principal: str) -> None:
        """Count one stream fewer."""
        self.readers -= 1
        self._principals.release(principal)

    async def feed_of(self, names: Iterable[str]) -> TableFeed:
        """Return the open feed of some tables; raise the error that prevents it."""
        tables = frozenset(names)
        async with self._starting.setdefault(tables, asyncio.Lock()):
            feed = self._feeds.get(tables)
            if feed is None or not feed.is_open:
                exposures = {name: self.exposures[name] for name in sorted(tables)}
                feed = TableFeed(self._source, exposures, self._context)
                await feed.open()
                self._feeds[tables] = feed
        feed.check()
        return feed

    async def reopen(self, table: str) -> None:
        """End the streams of a table whose columns are others now: they go on where they were."""
        stale = [names for names in self._feeds if table in names]
        for names in stale:
            feed = self._feeds.pop(names)
            feed.distribution.close(frames.bye("columns", self.limits.retry))
            await feed.close()

    async def close_idle(self) -> None:
        """Close the feeds without readers whose idle timeout has passed."""
        for names, feed in tuple(self._feeds.items()):
            if feed.is_idle:
                del self._feeds[names]
                await feed.close()

    def beat(self) -> None:
        """Send heartbeats to all readers."""
        for feed in self._feeds.values():
            feed.distribution.beat(feed.position)

    def close(self) -> None:
        """End every stream, and refuse new ones."""
        self.is_closing = True
        for feed in self._feeds.values():
            feed.distribution.close(frames.bye("shutdown", self.limits.retry))

    async def aclose(self) -> None:
        """Close all feeds."""
        feeds, self._feeds = self._feeds, {}
        await asyncio.gather(*(feed.close() for feed in feeds.values()))
