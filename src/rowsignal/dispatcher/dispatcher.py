"""Who waits for what: from hints and looks to the waits they concern.

One task takes hints in and looks at rows, in turns: a hint that arrives during a look is taken
when the rows of that look are known by their keys, so that none falls between.
"""

import asyncio
import logging
import math
import time
from collections.abc import Collection, Coroutine, Iterable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.exc import DataError, NotSupportedError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.dispatcher.row_reader import Found, read_rows
from rowsignal.dispatcher.row_waits import RowWatch, Subscription
from rowsignal.dispatcher.watched_table import HintReader, WatchedTable
from rowsignal.listener import OUTAGES, Listener
from rowsignal.listener.pacing import Pace
from rowsignal.mapping import KeyColumns, PrimaryKey, RowShape
from rowsignal.payload import CHANNEL, LOG_CHANNEL, Hint, PayloadError
from rowsignal.triggers.settings import TableName

logger = logging.getLogger("rowsignal.dispatcher")

INBOX_LIMIT = 20_000
RETRY_DELAY = 0.25
HOPELESS = (ProgrammingError, DataError, NotSupportedError)  # no waiting mends these

Due = dict[RowWatch, set[PrimaryKey]]


_dispatchers: WeakKeyDictionary[Listener, "Dispatcher"] = WeakKeyDictionary()


class Dispatcher:
    """All waits of an event loop for the rows of one database."""

    def __init__(self, listener: Listener, pace: Pace) -> None:
        self.listener = listener
        self.pace = pace
        self._rows: dict[RowShape, RowWatch] = {}
        self._tables: dict[TableName, WatchedTable] = {}
        self._inbox: list[str] = []
        self._log_wakes = 0
        self._has_overflown = False
        self._due: Due = {}
        self._asked: list[asyncio.Future[int]] = []
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, engine: AsyncEngine, pace: Pace | None = None) -> "Dispatcher":
        """Return the running event loop's dispatcher for an engine."""
        listener = Listener.of(engine)
        if listener not in _dispatchers:
            _dispatchers[listener] = cls(listener, pace or Pace())
        return _dispatchers[listener]

    @property
    def tables(self) -> Mapping[TableName, WatchedTable]:
        """Return what is watched now."""
        return self._tables

    @property
    def rows(self) -> Collection[RowWatch]:
        """Return the waits, model by model."""
        return self._rows.values()

    def subscribe(
        self,
        shape: RowShape,
        primary_key: PrimaryKey,
        *,
        attributes: Sequence[str] | None,
        seen: Mapping[str, Any] | None,
        interval: float,
    ) -> Subscription:
        """Wait for a row to differ from what was `seen`, or from what a first look shows."""
        rows = self._rows_of(shape)
        was = min(rows.intervals, default=math.inf)
        subscription = Subscription(rows, primary_key, attributes, seen, interval)
        rows.add(subscription)
        for table in shape.tables:
            watch = self._tables[shape.name_of(table)].watch
            watch.joined(subscription.names, is_hurried=interval < was)
        self._note(rows, {primary_key})
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a wait, however it came out."""
        subscription.future.cancel()
        rows = subscription.watch
        rows.remove(subscription)
        if not rows:
            loop = asyncio.get_running_loop()
            loop.call_later(self.pace.linger, self._retire, rows)

    def look(self, rows: RowWatch, keys: Iterable[PrimaryKey]) -> asyncio.Future[int]:
        """Look at rows soon; the future gives how many waits that round ended, or its outage."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._asked.append(future)
        self._note(rows, keys)
        return future

    def follow(self, names: Sequence[TableName], reader: HintReader) -> None:
        """Hand every hint of some tables to `reader` until `unfollow`."""
        for name in names:
            self._table(name).readers.add(reader)
        if self.are_armed(names):
            reader.armed()

    def unfollow(self, names: Sequence[TableName], reader: HintReader) -> None:
        """Stop handing hints to `reader`."""
        for name in names:
            self._tables[name].readers.discard(reader)
            self._retire_table(name)

    def are_armed(self, names: Iterable[TableName]) -> bool:
        """Tell whether no hint of these tables will be lost from now on."""
        return all(self._tables[name].watch.is_armed for name in names)

    def connected(self) -> None:
        """Arm again what is watched."""
        for table in self._tables.values():
            table.watch.stir()

    def degraded(self) -> None:
        """Let the tables be polled."""
        for table in self._tables.values():
            table.watch.stir()
            table.interrupt("the listening connection was lost")

    def received(self, channel: str, payload: str) -> None:
        """Keep a payload for the task; beyond the limit only that there were more."""
        if channel == LOG_CHANNEL:
            self._log_wakes += 1
        elif channel == CHANNEL and len(self._inbox) < INBOX_LIMIT:
            self._inbox.append(payload)
        else:
            self._has_overflown = True
        self._wake.set()

    async def stopped(self) -> None:
        """End what nobody needs any more; waits that are left go on by polling."""
        for rows in tuple(self._rows.values()):
            self._retire(rows)
        ending = [task for task in self._tasks if task.cancelling()]
        await asyncio.gather(*ending, return_exceptions=True)

    def _note(self, rows: RowWatch, keys: Iterable[PrimaryKey]) -> None:
        self._due.setdefault(rows, set()).update(keys)
        self._wake.set()

    def _rows_of(self, shape: RowShape) -> RowWatch:
        rows = self._rows.get(shape)
        if rows is None:
            rows = self._rows[shape] = RowWatch(shape)
            for table in shape.tables:
                self._table(shape.name_of(table)).rows[rows] = table
        return rows

    def _table(self, name: TableName) -> WatchedTable:
        if name not in self._tables:
            if self._task is None:
                self.listener.attach(self)
                self._task = self._spawn(self._run(), "rowsignal dispatcher")
            table = WatchedTable(name, self.listener, self.pace, self.look)
            self._tables[name] = table
            table.task = self._spawn(table.watch.run(), f"rowsignal {table.watch.label}")
        return self._tables[name]

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)  # the event loop alone would not keep it
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s has failed: waits may hang", task.get_name(), exc_info=error)

    def _retire(self, rows: RowWatch) -> None:
        if rows or self._rows.get(rows.shape) is not rows:
            return
        del self._rows[rows.shape]
        for table in rows.shape.tables:
            name = rows.shape.name_of(table)
            self._tables[name].rows.pop(rows)
            self._retire_table(name)

    def _retire_table(self, name: TableName) -> None:
        table = self._tables[name]
        if table.readers or table.rows:
            return
        del self._tables[name]
        if table.task is not None:
            table.task.cancel()
        if not self._tables and self._task is not None:
            self._task.cancel()
            self._task = None
            self.listener.detach(self)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            self._take_hints()
            await self._look()

    def _take_hints(self) -> None:
        inbox, self._inbox = self._inbox, []
        if self._has_overflown:
            self._has_overflown = False
            self._distrust_hints()
        if self._log_wakes:
            self._follow_log()
        hints: dict[str, list[Hint]] = {}
        for payload in inbox:
            hint = self._decode(payload)
            if hint is not None:
                hints.setdefault(hint.token, []).append(hint)
        for table in tuple(self._tables.values()):
            for token in table.watch.tokens & hints.keys():
                self._hand_out(table, hints[token])

    def _decode(self, payload: str) -> Hint | None:
        try:
            hint = Hint.decode(payload)
        except PayloadError as error:
            logger.debug("ignoring a notification: %s", error)
            self.listener.hooks.notified(accepted=False)
            return None
        self.listener.hooks.notified(accepted=True)
        return hint

    def _distrust_hints(self) -> None:
        for table in self._tables.values():
            table.interrupt("more notifications arrived than could be taken in")
        for table in self._tables.values():
            table.trust()
        for rows in self._rows.values():
            self._note(rows, rows.primary_keys)

    def _follow_log(self) -> None:
        """Look at what is waited for in logged tables: the log's wake-up names no row."""
        wakes, self._log_wakes = self._log_wakes, 0
        for table in self._tables.values():
            if table.watch.is_logged:
                table.watch.woken(wakes)
                for rows in table.rows:
                    self._note(rows, rows.primary_keys)

    def _hand_out(self, table: WatchedTable, hints: list[Hint]) -> None:
        table.watch.hinted(hints)
        for reader in tuple(table.readers):
            for hint in hints:
                reader.hinted(hint)
        for rows, of_model in table.rows.items():
            keys = set[PrimaryKey]().union(*(rows.concerned(of_model, hint) for hint in hints))
            if keys:
                self._note(rows, keys)

    async def _look(self) -> None:
        due, self._due = self._due, {}
        asked, self._asked = self._asked, []
        ended, outage = 0, None
        for rows, keys in due.items():
            try:
                ended += await self._look_at(rows, list(keys))
            except OUTAGES as error:
                outage = error
                self._postpone(rows, keys, error)
        for future in asked:
            if future.done():
                continue
            if outage is None:
                future.set_result(ended)
            else:
                future.set_exception(outage)

    async def _look_at(self, rows: RowWatch, keys: list[PrimaryKey]) -> int:
        began = time.perf_counter()
        try:
            found = await self._read(rows, keys)
        except HOPELESS as error:
            rows.fail(keys, error)
            return 0
        ended = sum(map(rows.offer, keys, found))
        label = rows.shape.mapper.local_table.description
        seconds = time.perf_counter() - began
        self.listener.hooks.looked(table=label, rows=len(keys), seconds=seconds)
        if ended:
            self.listener.hooks.delivered(table=label, count=ended)
        return ended

    async def _read(self, rows: RowWatch, keys: list[PrimaryKey]) -> list[Found | None]:
        key_columns = self._key_columns(rows)
        if any(key_columns):
            try:
                return await self._query(rows, keys, key_columns)
            except HOPELESS as error:  # say, rowsignal's schema was dropped: hints are for all rows
                logger.info("reading without keys: %s", error)
        return await self._query(rows, keys, ())

    def _key_columns(self, rows: RowWatch) -> KeyColumns:
        names = map(rows.shape.name_of, rows.shape.tables)
        tables = (self._tables.get(name) for name in names)
        return tuple(None if table is None else table.watch.hinted_key for table in tables)

    async def _query(
        self, rows: RowWatch, keys: list[PrimaryKey], key_columns: KeyColumns
    ) -> list[Found | None]:
        async def work(connection: AsyncConnection) -> list[Found | None]:
            return await read_rows(connection, rows.shape, keys, key_columns=key_columns)

        return await self.listener.own.run(work, timeout=self.pace.answer)

    def _postpone(self, rows: RowWatch, keys: set[PrimaryKey], error: Exception) -> None:
        """Look again later; who has not seen the row even once hears the error instead."""
        for wait in rows.unseen(keys):
            wait.fail(error)
        asyncio.get_running_loop().call_later(RETRY_DELAY, self._note, rows, keys)
