"""The feed of changes with their rows, which `watch` and the streams over HTTP both read."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Reset
from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotWatchedError
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import reconnect_delays
from rowsignal.postgres.errors import describe, is_outage
from rowsignal.postgres.json_rows import TableShape
from rowsignal.streams.catalog import TableCatalog, TableState
from rowsignal.streams.loader import Loaded, RowChange, RowLoader, TableReset
from rowsignal.streams.side_reader import SideReader
from rowsignal.streams.sources import HintSource, LogSource, Source, SourceBatch

logger = logging.getLogger("rowsignal.streams")

LIMIT = 10_000


class ChangeFeed:
    """Changes of tables, in the order of the log where they have one; open inside `async with`.

    If the capture of a table changes (triggers dropped, replaced or disabled, another key, another
    partition), the feed yields a `TableReset` with the reason. The table's changes continue as soon
    as they are captured again; other tables are not affected.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        names: Iterable[QualifiedName],
        *,
        after: str | None = None,
        begin: Callable[["ChangeFeed"], Awaitable[str | None]] | None = None,
        limit: int = LIMIT,
    ) -> None:
        """Prepare to read from a position, or from the one that `begin` returns.

        `begin` is called once, when no notification can be lost any more.
        """
        self.position: str | None = None
        self.states: dict[QualifiedName, TableState] = {}
        self.shapes: dict[QualifiedName, TableShape] = {}
        self._engine = engine
        self._names = list(names)
        self._after = after
        self._begin = begin
        self._limit = limit
        self._reader = SideReader.of(engine)
        self._catalog = TableCatalog.of(engine)
        self._loader = RowLoader(self._reader, self.shapes)
        self._notices: deque[TableReset] = deque()
        self._is_stale = False
        self._log: LogSource | None = None
        self._sources: list[Source] = []
        self._coming: dict[asyncio.Future[SourceBatch], Source] = {}
        self._opened = AsyncExitStack()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Read the tables' states and start."""
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._reader)
            self.states |= await self._catalog.follow(self._names, self)
            stack.callback(self._catalog.unfollow, self._names, self)
            self._learn()
            await self._open(self._after)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._close()
        await self._stack.aclose()

    @property
    def is_logged(self) -> bool:
        """Tell whether all tables are logged, so that the feed has positions."""
        return all(state.capture.kind == "log" for state in self.states.values())

    @property
    def is_level(self) -> bool:
        """Tell whether the feed gets its batches from the log tail."""
        return self._log is None or not self._log.subscription.is_behind

    @property
    def has_unread(self) -> bool:
        """Tell whether pushed changes have not been taken yet."""
        return self._log is not None and self._log.subscription.has_unread

    @property
    def guarded(self) -> frozenset[QualifiedName]:
        """The tables of which row-level security decides which rows are seen."""
        return frozenset(name for name, it in self.shapes.items() if it.has_row_security)

    def check(self) -> None:
        """Raise `NotWatchedError` when changes of a table are not captured."""
        for state in self.states.values():
            if state.fault is not None:
                raise NotWatchedError(f"{state.fault} Run `rowsignal install {state.label}`.")

    def state_changed(self, name: QualifiedName, state: TableState, reason: str | None) -> None:
        """Handle a table's new state; other tables go on."""
        was = self.states[name]
        self.states[name] = state
        self._learn()
        if reason is not None:
            self._notices.append(TableReset(reason=reason, table=name, is_of_capture=True))
            # Another state of the same source needs a reset of this table, and no new reading.
            self._is_stale |= _source(was) != _source(state)
            for source in self._sources:
                source.interrupt()

    async def next(self) -> SourceBatch:
        """Wait for changes; a cancellation loses nothing."""
        while True:
            if self._is_stale:
                await self._close()
                await self._open_patiently()
                self._is_stale = False
            if self._notices:
                return SourceBatch([self._notices.popleft()], self.position)
            batch = await self._take()
            self.position = batch.position or self.position
            # After an interruption the notice comes first, under the position reached so far.
            if batch.items or (batch.position and not self._notices):
                return batch

    async def load(
        self,
        batch: SourceBatch,
        wanted: Mapping[QualifiedName, frozenset[str]],
        *,
        prefers_log: bool = True,
    ) -> list[Loaded | Reset]:
        """Return the items of a batch with their rows; see `RowLoader.load`."""
        loaded: list[Loaded | Reset] = []
        run: list[RowChange] = []
        for item in [*batch.items, None]:
            if isinstance(item, RowChange):
                run.append(item)
                continue
            if run:
                loaded += await self._loader.load(
                    run, wanted, prefers_log=prefers_log, is_unverified=batch.is_unverified
                )
                run = []
            if item is not None:
                loaded.append(item)
        return loaded

    def _learn(self) -> None:
        for name, state in self.states.items():
            if state.shape is not None:
                self.shapes[name] = state.shape
            else:
                self.shapes.pop(name, None)

    async def _open(self, after: str | None) -> None:
        logged = [name for name, state in self.states.items() if state.capture.kind == "log"]
        hinted = [it.capture for it in self.states.values() if it.capture.kind == "hint"]
        async with AsyncExitStack() as stack:
            sources: list[Source] = []
            if hinted:  # hints first, so that none is lost while the log is opened
                hints = HintSource(Dispatcher.of(self._engine), hinted, self._limit)
                sources.append(await stack.enter_async_context(hints))
            # A snapshot is taken when hints arrive already: what commits after it is told.
            if self._begin is not None:
                after = await self._begin(self)
                self._begin = None
            if logged:
                tail = LogTail.of(self._engine)
                reading = tail.subscribe(logged, after=after, limit=self._limit)
                self._log = LogSource(await stack.enter_async_context(reading))
                self.position = self._log.subscription.position
                sources.insert(0, self._log)
            self._opened = stack.pop_all()
        self._sources = sources or [_Silence()]

    async def _open_patiently(self) -> None:
        delays = reconnect_delays()
        while True:
            try:
                return await self._open(self.position)
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning(
                    "changes of streamed tables cannot be read; trying again: %s", describe(error)
                )
            await asyncio.sleep(next(delays))

    async def _close(self) -> None:
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)
        self._coming.clear()
        self._sources, self._log = [], None
        await self._opened.aclose()

    async def _take(self) -> SourceBatch:
        # The usual case needs no task of its own for each batch.
        if len(self._sources) == 1:
            return await self._sources[0].next()
        for source in set(self._sources).difference(self._coming.values()):
            self._coming[asyncio.ensure_future(source.next())] = source
        # The other tasks stay: a cancellation of this wait loses no batch of theirs.
        done, _ = await asyncio.wait(self._coming, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop()
        del self._coming[first]
        return first.result()


class _Silence:
    """The source of tables that are not captured."""

    def __init__(self) -> None:
        self._interrupted = asyncio.Event()

    async def next(self) -> SourceBatch:
        """Wait for the interruption."""
        await self._interrupted.wait()
        self._interrupted.clear()
        return SourceBatch(())

    def interrupt(self) -> None:
        """Make `next` return."""
        self._interrupted.set()


def _source(state: TableState) -> object:
    """Return the properties that decide on the source of a table's changes."""
    capture = state.capture
    return capture.oid, capture.kind, capture.channels, capture.key_columns
