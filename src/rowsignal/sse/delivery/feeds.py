"""Feeds: each follows one set of tables for all streams of exactly these tables."""

import asyncio
import logging
from collections.abc import Mapping, Sequence

from rowsignal.changes import Reset
from rowsignal.exceptions import NotWatchedError
from rowsignal.identifiers import QualifiedName
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.delivery.context import DeliveryContext
from rowsignal.sse.delivery.distribution import AT_ONCE, Distribution
from rowsignal.streams.change_source import ChangeSource, Feed
from rowsignal.streams.loader import Loaded, RowChange, TableReset
from rowsignal.streams.sources import SourceBatch

logger = logging.getLogger("rowsignal.sse")

IDLE_TIMEOUT = 30.0  # seconds that a feed stays open without readers
NOT_FOLLOWED = "Changes are not followed just now; come back in a moment."
FAILED = "Some changes could not be told."


class TableFeed:
    """Follows a set of tables; a slow change delays no stream of other tables.

    `position` is the place up to which all changes were published, if all tables are logged.
    """

    def __init__(
        self, source: ChangeSource, exposures: Mapping[str, Exposure], context: DeliveryContext
    ) -> None:
        self.source = source
        self.position: str | None = None
        self.distribution = Distribution(exposures, context)
        self.changes: Feed = source.feed([it.full_name for it in exposures.values()])
        self._exposures = {it.full_name: it for it in exposures.values()}
        self._context = context
        self._is_working = False
        self._readers = 0
        self._unread_since = asyncio.get_running_loop().time()
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether the feed follows changes."""
        return self._task is not None and not self._task.done()

    async def open(self) -> None:
        """Start to follow changes; raise the error that prevents it."""
        # The error of the first connection belongs to the request; later ones to all readers.
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._run(started), name=f"rowsignal sse {self.label}")
        try:
            await started
        except asyncio.CancelledError:
            await self.close()
            raise

    async def close(self) -> None:
        """Stop following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def acquire(self) -> None:
        """Count one more reader."""
        self._readers += 1

    def release(self) -> None:
        """Count one reader fewer."""
        self._readers -= 1
        self._unread_since = asyncio.get_running_loop().time()

    @property
    def is_idle(self) -> bool:
        """Tell whether the feed has ended, or had no reader for its idle timeout."""
        unread = asyncio.get_running_loop().time() - self._unread_since
        return not self.is_open or (not self._readers and unread > IDLE_TIMEOUT)

    @property
    def guarded(self) -> frozenset[str]:
        """The tables with row-level security."""
        guarded = self.changes.guarded
        return frozenset(it.name for name, it in self._exposures.items() if name in guarded)

    @property
    def label(self) -> str:
        """The tables' names for messages."""
        return ", ".join(sorted(self.distribution.exposures))

    def check(self) -> None:
        """Raise `NotWatchedError` if changes of a table are not captured."""
        self.changes.check()

    def wanted(self) -> Mapping[QualifiedName, frozenset[str]]:
        """Return the columns that readers see or filter by, by table."""
        return {
            name: it.columns | self.distribution.filter_columns(it.name)
            for name, it in self._exposures.items()
        }

    async def published_position(self) -> str:
        """Wait until everything read so far is published; return its position.

        The position is exact until the caller awaits something else. It lies after this call,
        unless the feed is behind: then it is the feed's position.
        """
        # A feed that reads the log alone is behind: it would have to catch up first.
        if self.changes.is_level:
            await self.source.catch_up()
        while self._is_working or self.changes.has_unread:
            self._moved.clear()
            await self._moved.wait()
        if not self.is_open or self.position is None:
            raise NotWatchedError(NOT_FOLLOWED)
        source = self.source.position if self.changes.is_level else None
        return source or self.position

    async def moved(self) -> None:
        """Wait until more has been published."""
        self._moved.clear()
        await self._moved.wait()

    async def events(
        self, batch: SourceBatch, wanted: Mapping[QualifiedName, frozenset[str]]
    ) -> list[Event | Reset]:
        """Return the events of a batch of changes, with their rows."""
        loaded = await self.changes.load(batch, wanted)
        return [self._event(it) for it in loaded]

    async def _run(self, started: asyncio.Future[None]) -> None:
        try:
            async with self.changes:
                self.position = self.changes.position
                started.set_result(None)
                while True:
                    batch = await self.changes.next()
                    self._is_working = True
                    await self._take_parts(batch)
                    self._is_working = False
                    self._moved.set()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("%s: the feed has failed and ends", self.label)
            self._context.hooks.task_restarted(task="sse feed", reason=type(error).__name__)
            self.distribution.reset(NOT_FOLLOWED)
        finally:
            self._is_working = False
            self._moved.set()

    async def _take_parts(self, batch: SourceBatch) -> None:
        for part in batch.parts():
            await self._take(part)
            self.position = part.position or self.position
            await asyncio.sleep(0)  # readers of other tables have their turn

    async def _take(self, batch: SourceBatch) -> None:
        """Publish a batch; a change that cannot be published becomes a reset for its readers."""
        try:
            items = await self.events(batch, self.wanted())
        except Exception as error:
            logger.exception(
                "%s: changes cannot be published; their readers get a reset", self.label
            )
            self._context.hooks.task_restarted(task="sse feed", reason=type(error).__name__)
            self.distribution.reset(FAILED)
            return
        for start in range(0, len(items), AT_ONCE):
            if start:
                await asyncio.sleep(0)
            self._publish(items[start : start + AT_ONCE], batch)

    def _publish(self, items: Sequence[Event | Reset], batch: SourceBatch) -> None:
        events: list[Event] = []
        for item in items:
            if isinstance(item, Event):
                events.append(item)
            else:
                # The reset stands at its place among the events.
                self.distribution.publish(events)
                events = []
                self._tell(item, batch)
        self.distribution.publish(events)
        # Once they are published: a heartbeat must not lead a reader back before them.
        places = (item.position for item in reversed(items) if item.position)
        self.position = next(places, self.position)

    def _tell(self, reset: Reset, batch: SourceBatch) -> None:
        # A row that cannot be shown leaves the stream exact; hints have no place to resume anyway.
        is_of_row = isinstance(reset, TableReset) and not reset.is_of_capture
        self.distribution.reset(reset.reason, continues=batch.is_unverified or is_of_row)

    def _event(self, item: Loaded | Reset) -> Event | Reset:
        if not isinstance(item, RowChange):
            return item
        change, exposure = item.change, self._exposures[item.table]
        key = change.key
        if key is not None and tuple(key) != exposure.key:
            # jsonb sorts names in its own way; readers get them in the order of the key.
            key = {name: key[name] for name in exposure.key}
        # By place: with names it would take twice as long, for every change there is.
        return Event(
            change.operation,
            exposure,
            key,
            change.changed,
            item.row,
            item.old,
            change.position,
            change.transaction_id,
            change.captured_at,
        )
