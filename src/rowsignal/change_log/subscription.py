"""One reader of the change log, which gets batches from the tail or catches up by itself."""

import asyncio
from collections import deque
from dataclasses import replace
from itertools import compress
from typing import Protocol, Self

from rowsignal.change_log.batches import Batch
from rowsignal.change_log.log import PAGE, ChangeLog
from rowsignal.change_log.positions import decode
from rowsignal.changes import Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import OUTAGES, reconnect_delays


class Tail(Protocol):
    """The part of the log tail that a subscription uses."""

    log: ChangeLog

    async def attach(self, subscription: "LogSubscription") -> str:
        """Push every batch after the returned position."""

    def detach(self, subscription: "LogSubscription") -> None:
        """Stop pushing."""


class LogSubscription:
    """An endless iterator over `Batch | Reset`; `position` is where its last item ended.

    It holds a limited number of changes that the tail has pushed. Beyond the limit they are dropped
    and read from the log again on demand: exactly, and at the cost of the slow reader alone.
    """

    def __init__(
        self, tail: Tail, tables: tuple[QualifiedName, ...], after: str | None, limit: int
    ) -> None:
        if after is not None:
            decode(after)  # raises `PositionError` for other text
        self.tables = tables
        self.position = after or ""
        self._tail = tail
        self._limit = limit
        self._wanted = frozenset(tables)
        self._buffer: deque[Batch | Reset] = deque()
        self._buffered = 0
        self._pushed = asyncio.Event()
        self._is_behind = after is not None
        self._error: BaseException | None = None
        self._is_interrupted = False
        self._lags_from: str | None = None  # pushed batches are taken first
        self._joint: str | None = None  # where the pushed batches begin, while still behind

    async def begin(self) -> None:
        """Start; a reader from now on attaches to the tail at once."""
        if not self._is_behind:
            self.position = await self._tail.attach(self)
            self._joint = None

    @property
    def is_behind(self) -> bool:
        """Tell whether this reader reads the log by itself."""
        return self._is_behind or self._lags_from is not None

    @property
    def has_unread(self) -> bool:
        """Tell whether pushed batches have not been taken yet."""
        return not self._is_behind and bool(self._buffer)

    def interrupt(self) -> None:
        """Make the iterator return, if only an empty batch."""
        self._is_interrupted = True
        self._pushed.set()

    def lag(self, position: str) -> None:
        """Read the log alone after `position`: there is too much for all subscriptions to wait."""
        self._lags_from = position
        self._pushed.set()

    def attached(self, position: str) -> None:
        """Handle the attachment: batches after `position` will be pushed."""
        self._clear()
        self._joint = position

    def push(self, item: Batch | Reset) -> None:
        """Accept a batch from the tail; detach if it exceeds the limit."""
        if isinstance(item, Batch):
            item = self._narrowed(item)
            self._buffered += len(item.changes)
            if self._buffered > self._limit:
                self._tail.detach(self)
                self._clear()
                self._is_behind, self._joint = True, None
            # Empty batches come in intervals; a reader that does not read must not collect them.
            elif not item.changes and self._buffer and isinstance(self._buffer[-1], Batch):
                self._buffer[-1] = replace(self._buffer[-1], position=item.position)
            else:
                self._buffer.append(item)
        else:
            self._buffer.append(item)
        self._pushed.set()

    def fail(self, error: BaseException) -> None:
        """Store an error, which the next item raises."""
        self._error = error
        self._pushed.set()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch | Reset:
        while True:
            if self._is_interrupted:
                self._is_interrupted = False
                return Batch(changes=[], position=self.position)
            if self._is_behind:
                item = await self._read_on()
            elif self._buffer:
                item = self._buffer.popleft()
                self._buffered -= len(item.changes) if isinstance(item, Batch) else 0
            elif self._lags_from is not None:
                self.position, self._lags_from = self._lags_from, None
                self._is_behind, self._joint = True, None
                continue
            elif self._error is not None:
                raise self._error
            else:
                self._pushed.clear()
                await self._pushed.wait()
                continue
            self.position = item.position or self.position
            return item

    async def _read_on(self) -> Batch | Reset:
        """Read from the log up to now, then up to the position where the tail takes over."""
        delays = reconnect_delays()
        while True:
            try:
                item = await self._tail.log.read(
                    self.position, until=self._joint, tables=self.tables, limit=PAGE
                )
                if isinstance(item, Reset):
                    self._tail.detach(self)
                    self._joint = None
                # All that lies before the first pushed batch has been read.
                elif item.is_complete and self._joint is not None:
                    self._is_behind, self._joint = False, None
                # Up to date for a moment: attach, then read what was committed up to the joint.
                elif item.is_complete:
                    await self._tail.attach(self)
            except OUTAGES:
                await asyncio.sleep(next(delays))
            else:
                return item

    def _clear(self) -> None:
        self._lags_from = None
        self._buffer.clear()
        self._buffered = 0

    def _narrowed(self, batch: Batch) -> Batch:
        """Leave out the tables that only other subscriptions read."""
        wanted = [(change.schema, change.table) in self._wanted for change in batch.changes]
        if all(wanted):
            return batch
        before = batch.before and list(compress(batch.before, wanted))
        return replace(batch, changes=list(compress(batch.changes, wanted)), before=before)
