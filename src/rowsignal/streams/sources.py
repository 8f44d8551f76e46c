"""The sources of a stream: the change log, and the hints of tables without a log."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from typing import Protocol, Self

from rowsignal.change_log import Batch
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.changes import Change, Operation, Reset
from rowsignal.dispatcher import Dispatcher
from rowsignal.payload import Hint
from rowsignal.streams.loader import RowChange
from rowsignal.triggers.catalog import Capture

START_TIMEOUT = 2.0
PART = 250  # changes of a batch: some milliseconds of work, and one query for their rows
LOST = "Changes may be missing from here: {}."
FOUND = (
    "Changes may be missing up to here, since notifications did not arrive for a while;"
    " from now on they arrive."
)
OVERFLOWN = "Changes are missing: they were not read in time."


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Some changes whose rows are not loaded yet, and the position after the last of them.

    `is_unverified`: the changes come from notifications, which any role can send. `is_complete` is
    false if more changes follow before the position that was asked for.
    """

    items: Sequence[RowChange | Reset]
    position: str | None = None
    is_unverified: bool = False
    is_complete: bool = True

    def parts(self) -> "list[SourceBatch]":
        """Split the batch, so that other tasks of the event loop run between two parts."""
        if len(self.items) <= PART:
            return [self]
        parts = [self._part(start) for start in range(0, len(self.items), PART)]
        return [*parts[:-1], replace(parts[-1], position=self.position)]

    def _part(self, start: int) -> "SourceBatch":
        items = self.items[start : start + PART]
        last = items[-1]
        position = last.change.position if isinstance(last, RowChange) else None
        return replace(self, items=items, position=position)


class Source(Protocol):
    """An endless source of batches."""

    async def next(self) -> SourceBatch:
        """Wait for the next batch; a cancellation loses nothing."""

    def interrupt(self) -> None:
        """Make `next` return, perhaps with an empty batch."""


def batch_of(item: Batch | Reset) -> SourceBatch:
    """Return a batch or reset of the log as a batch of this source."""
    if isinstance(item, Reset):
        return SourceBatch([item], item.position)
    olds = item.before or repeat(None)
    changes = [
        RowChange(change, change.row, old) for change, old in zip(item.changes, olds, strict=False)
    ]
    return SourceBatch(changes, item.position)


class LogSource:
    """Changes of logged tables."""

    def __init__(self, subscription: LogSubscription) -> None:
        self.subscription = subscription

    async def next(self) -> SourceBatch:
        """Wait for the next batch of the log."""
        return batch_of(await anext(self.subscription))

    def interrupt(self) -> None:
        """Make `next` return."""
        self.subscription.interrupt()


class HintSource:
    """Hints of tables without a log, in the order in which they arrive.

    A gap (a lost connection, too many hints) is reported when it begins, since a reader cannot tell
    it from a quiet table, and again when it ends: from then on no hint is lost. There is no gap
    before the stream has begun.
    """

    def __init__(self, dispatcher: Dispatcher, tables: Sequence[Capture], limit: int) -> None:
        self._dispatcher = dispatcher
        self._names = [(it.schema, it.table) for it in tables]
        self._by_token = {token: it for it in tables for token, _ in it.channels}
        self._limit = limit
        self._items: deque[RowChange | Reset] = deque()
        self._arrived = asyncio.Event()
        self._armed = asyncio.Event()
        self._has_begun = False

    async def __aenter__(self) -> Self:
        """Start when no hint is lost any more; if that takes too long, start with a reset."""
        # Registered before the wait: a table that is armed meanwhile reports it.
        self._dispatcher.follow(self._names, self)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(START_TIMEOUT):
                    await self._armed.wait()
        except asyncio.CancelledError:
            self._dispatcher.unfollow(self._names, self)
            raise
        self._has_begun = True
        watches = [self._dispatcher.tables[name].watch for name in self._names]
        if not all(watch.is_notifying for watch in watches):
            self.interrupted("notifications do not arrive yet")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._dispatcher.unfollow(self._names, self)

    async def next(self) -> SourceBatch:
        """Wait for hints."""
        await self._arrived.wait()
        # Nothing is awaited from here on, so a cancellation cannot lose what is taken.
        self._arrived.clear()
        items = tuple(self._items)
        self._items.clear()
        return SourceBatch(items, is_unverified=True)

    def interrupt(self) -> None:
        """Make `next` return."""
        self._arrived.set()

    def hinted(self, hint: Hint) -> None:
        """Handle one hint."""
        capture = self._by_token.get(hint.token)
        if capture is not None:
            self._push(RowChange(_change(capture, hint)))

    def interrupted(self, reason: str) -> None:
        """Report a gap: hints may be lost."""
        self._armed.clear()
        if self._has_begun:
            self._push(Reset(reason=LOST.format(reason)))

    def armed(self) -> None:
        """Report the end of the gap, once all tables are armed."""
        if self._armed.is_set() or not self._dispatcher.are_armed(self._names):
            return
        self._armed.set()
        if self._has_begun:
            self._push(Reset(reason=FOUND))

    def _push(self, item: RowChange | Reset) -> None:
        # A reset says as much as the hints before it: the tables must be read again.
        if len(self._items) >= self._limit:
            self._items.clear()
            self._items.append(Reset(reason=OVERFLOWN))
        self._items.append(item)
        self._arrived.set()


def _change(capture: Capture, hint: Hint) -> Change:
    """Return a hint as a change; without a usable key it may concern any row."""
    key, operation = None, hint.operation
    # Any role can send a hint: a key of another length is forged, or of a table altered since.
    if hint.key is not None and len(hint.key) == len(capture.key_columns):
        key = dict(zip(capture.key_columns, hint.key, strict=True))
    is_of_part = (hint.schema, hint.table) != (capture.schema, capture.table)
    if key is None and is_of_part and operation is Operation.TRUNCATE:
        operation = Operation.UPDATE  # a partition was emptied, not the table
    return Change(
        operation=operation,
        schema=capture.schema or "public",
        table=capture.table,
        key=key,
        changed=hint.changed,
        transaction_id=hint.transaction_id,
    )
