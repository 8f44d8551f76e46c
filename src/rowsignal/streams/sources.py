"""Where the changes of a stream come from: the log, and notifications of tables without one."""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
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
LOST = "Changes may be missing from here: {}."
FOUND = (
    "Changes may be missing up to here, since notifications did not arrive for a while;"
    " from now on they arrive."
)
OVERFLOWN = "Changes are missing: they were not read in time."


@dataclass(frozen=True, slots=True)
class Portion:
    """Some changes, whose rows are still to be loaded, and the position after the last of them.

    `is_hearsay`: they come from notifications, which any role can send. `is_complete` is false when
    more is waiting where it was asked for.
    """

    items: Sequence[RowChange | Reset]
    position: str | None = None
    is_hearsay: bool = False
    is_complete: bool = True


class Source(Protocol):
    """An endless source of portions."""

    async def next(self) -> Portion:
        """Wait for the next portion; a cancellation loses nothing."""

    def interrupt(self) -> None:
        """Make `next` return, if only an empty portion."""


def portion_of(item: Batch | Reset) -> Portion:
    """Return what the log gave as a portion."""
    if isinstance(item, Reset):
        return Portion([item], item.position)
    olds = item.before or repeat(None)
    changes = [
        RowChange(change, change.row, old) for change, old in zip(item.changes, olds, strict=False)
    ]
    return Portion(changes, item.position)


class LogSource:
    """Changes of logged tables."""

    def __init__(self, subscription: LogSubscription) -> None:
        self.subscription = subscription

    async def next(self) -> Portion:
        """Wait for the next batch of the log."""
        return portion_of(await anext(self.subscription))

    def interrupt(self) -> None:
        """Make `next` return."""
        self.subscription.interrupt()


class HintSource:
    """Changes of tables without a log, as their notifications arrive.

    A gap (a lost connection, more than can be kept) is told when it begins, since silence would
    look like peace, and again when it is over: what arrives from then on misses nothing. Before
    the stream has begun there is no gap, for no reader relies on it yet.
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
        """Begin when no hint will be missing; where that takes long, before, and say so."""
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

    async def next(self) -> Portion:
        """Wait for hints."""
        await self._arrived.wait()
        self._arrived.clear()
        items = tuple(self._items)
        self._items.clear()
        return Portion(items, is_hearsay=True)

    def interrupt(self) -> None:
        """Make `next` return."""
        self._arrived.set()

    def hinted(self, hint: Hint) -> None:
        """Take one hint."""
        capture = self._by_token.get(hint.token)
        if capture is not None:
            self._push(RowChange(_change(capture, hint)))

    def interrupted(self, reason: str) -> None:
        """Tell that hints may have been lost."""
        self._armed.clear()
        if self._has_begun:
            self._push(Reset(reason=LOST.format(reason)))

    def armed(self) -> None:
        """Tell that hints come again, once they do for all tables."""
        if self._armed.is_set() or not self._dispatcher.are_armed(self._names):
            return
        self._armed.set()
        if self._has_begun:
            self._push(Reset(reason=FOUND))

    def _push(self, item: RowChange | Reset) -> None:
        if len(self._items) >= self._limit:
            self._items.clear()
            self._items.append(Reset(reason=OVERFLOWN))
        self._items.append(item)
        self._arrived.set()


def _change(capture: Capture, hint: Hint) -> Change:
    """Return the change that a hint tells of; one without a usable key may be of any rows."""
    key, operation = None, hint.operation
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
