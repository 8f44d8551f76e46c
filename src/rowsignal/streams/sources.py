"""Where the changes of a stream come from: the log, hints, or a snapshot of the rows."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol, Self

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.change_log import Batch
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.changes import Change, Operation, Reset
from rowsignal.dispatcher import HOPELESS, Dispatcher
from rowsignal.listener import OUTAGES, reconnect_delays
from rowsignal.payload import Hint
from rowsignal.postgres.connections import OwnConnection
from rowsignal.postgres.json_rows import Values, all_rows, pin_settings, rows_by_key
from rowsignal.streams.tables import StreamedTable, TableName

logger = logging.getLogger("rowsignal.streams")

LOOK_TIMEOUT = 30.0
PATIENCE = 2.0
Item = Change | Reset
Found = dict[tuple[TableName, str], Values | None]


@dataclass(frozen=True, slots=True)
class Portion:
    """Some items, and the position after the last of them, where there are positions."""

    items: Sequence[Item]
    position: str | None = None


class Source(Protocol):
    """Something that items come from, portion by portion."""

    async def next(self) -> Portion:
        """Wait for the next portion."""


class LogSource:
    """Changes of logged tables."""

    def __init__(self, subscription: LogSubscription) -> None:
        self._subscription = subscription

    async def next(self) -> Portion:
        """Wait for the next batch of the log."""
        item = await anext(self._subscription)
        if isinstance(item, Batch):
            return Portion(item.changes, item.position)
        return Portion([item], item.position)


class HintSource:
    """Changes of tables without a log, as their notifications arrive.

    A gap (a lost connection, more than can be kept) is said when it begins, so that nobody takes
    silence for peace, and again when it is over: what is read from then on misses nothing. Before
    the stream has begun there is no gap, for nobody relies on it yet.
    """

    def __init__(self, dispatcher: Dispatcher, tables: Sequence[StreamedTable], limit: int) -> None:
        self._dispatcher = dispatcher
        self._tables = tables
        self._names = [(t.capture.schema, t.capture.table) for t in tables]
        self._by_token = {token: t for t in tables for token, _ in t.capture.channels}
        self._limit = limit
        self._items: deque[Item] = deque()
        self._arrived = asyncio.Event()
        self._sound = asyncio.Event()
        self._has_begun = False

    async def __aenter__(self) -> Self:
        """Begin when no hint will be missing; where that takes long, before, and say so."""
        self._dispatcher.follow(self._names, self)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE):
                    await self._sound.wait()
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

    def hinted(self, hint: Hint) -> None:
        """Take one hint."""
        table = self._by_token.get(hint.token)
        if table is None:
            return
        key = None
        if hint.key is not None:
            key = dict(zip(table.capture.key_columns, hint.key, strict=False))
        schema, name = table.name
        change = Change(
            operation=hint.operation,
            schema=schema,
            table=name,
            key=key,
            changed=hint.changed,
            transaction_id=hint.transaction_id,
        )
        self._push(change)

    def interrupted(self, reason: str) -> None:
        """Say that hints may have been lost."""
        self._sound.clear()
        if self._has_begun:
            self._push(Reset(reason=f"Changes may be missing from here: {reason}."))

    def armed(self) -> None:
        """Say that hints come again, once they do for all tables."""
        if self._sound.is_set() or not self._dispatcher.are_armed(self._names):
            return
        self._sound.set()
        if self._has_begun:
            self._push(Reset(reason="Changes may be missing up to here; from now on they arrive."))

    async def next(self) -> Portion:
        """Wait for hints."""
        while not self._items:
            self._arrived.clear()
            await self._arrived.wait()
        items = tuple(self._items)
        self._items.clear()
        return Portion(items)

    def _push(self, item: Item) -> None:
        if len(self._items) >= self._limit:
            self._items.clear()
            self._items.append(Reset(reason="Changes are missing: they were not read in time."))
        self._items.append(item)
        self._arrived.set()


class SnapshotSource:
    """The rows of tables as one transaction sees them, as inserts."""

    def __init__(self, connection: AsyncConnection, tables: Sequence[StreamedTable]) -> None:
        self._connection = connection
        self._pages = self._read(tables)

    async def next(self) -> Portion | None:
        """Return the next rows; None after the last."""
        return await anext(self._pages, None)

    async def _read(self, tables: Sequence[StreamedTable]) -> AsyncIterator[Portion]:
        await pin_settings(self._connection, is_local=True)
        for streamed in tables:
            async for rows in all_rows(self._connection, streamed.table):
                yield Portion([_inserted(streamed, row) for row in rows])


def _inserted(streamed: StreamedTable, row: Values) -> Change:
    schema, name = streamed.name
    key = {column.name: _key_value(row[column.name]) for column in streamed.table.primary_key}
    return Change(operation=Operation.INSERT, schema=schema, table=name, key=key, row=row)


def _key_value(value: object) -> object:
    return value if isinstance(value, int | str) else str(value)


class RowShower:
    """Adds to changes the rows as they are now.

    What a change says and what its row shows are never at odds: a row that is gone is deleted,
    whatever was logged of it, and one that is there is not. So whoever keeps rows by these changes
    ends up with the table, in whichever order triggers within one statement have logged.
    """

    def __init__(self, own: OwnConnection, tables: Mapping[TableName, StreamedTable]) -> None:
        self._own = own
        self._tables = tables

    async def show(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return the items with rows, asked for in one query per table."""
        keys = self._keys(items)
        delays = reconnect_delays()
        while keys:
            try:
                found = await self._own.run(partial(self._look, keys), timeout=LOOK_TIMEOUT)
            except HOPELESS:
                raise
            except OUTAGES as error:
                logger.warning("the changed rows can not be read just now: %s", error)
                await asyncio.sleep(next(delays))
            else:
                return [self._shown(item, found) for item in items]
        return items

    async def _look(
        self, keys: Mapping[TableName, Mapping[str, Values]], connection: AsyncConnection
    ) -> Found:
        await pin_settings(connection, is_local=self._own.is_pooled)
        found: Found = {}
        for name, of_table in keys.items():
            table = self._tables[name].table
            rows = await rows_by_key(connection, table, list(of_table.values()))
            found |= {(name, text): row for text, row in zip(of_table, rows, strict=True)}
        return found

    def _keys(self, items: Sequence[Item]) -> dict[TableName, dict[str, Values]]:
        keys: dict[TableName, dict[str, Values]] = {}
        for item in items:
            if isinstance(item, Change) and item.key is not None:
                keys.setdefault((item.schema, item.table), {})[repr(item.key)] = item.key
        return keys

    def _shown(self, item: Item, found: Found) -> Item:
        if isinstance(item, Reset) or item.key is None:
            return item
        row = found[(item.schema, item.table), repr(item.key)]
        if row is None:
            return replace(item, operation=Operation.DELETE, changed=None, row=None)
        if item.operation is Operation.DELETE:
            return replace(item, operation=Operation.UPDATE, row=row)
        return replace(item, row=row)
