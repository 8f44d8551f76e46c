"""The dispatcher: passes hints and rows that were read to the waits that they concern."""

import asyncio
import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy.exc import DataError, NotSupportedError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.dispatcher.conditions import Changes, Condition
from rowsignal.dispatcher.row_reader import RowReader
from rowsignal.dispatcher.row_waits import RowWatch, Subscription
from rowsignal.dispatcher.table_survey import TableSurvey
from rowsignal.dispatcher.watched_table import HintReader, WatchedTable
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.mapping import KeyColumns, PrimaryKey, RowShape
from rowsignal.payload import CHANNEL, LOG_CHANNEL, Hint, PayloadError
from rowsignal.triggers.settings import TableName

logger = logging.getLogger("rowsignal.dispatcher")

# Payloads in one turn of the event loop; beyond it all waited-for rows are read instead.
INBOX_LIMIT = 20_000
HOPELESS = (ProgrammingError, DataError, NotSupportedError)  # better: postgres.errors.is_hopeless


class Dispatcher:
    """All waits of an event loop for the rows of one database.

    It has no task: a callback stores notifications, and the next turn of the event loop handles
    them. Each model has a reader, and each table has a task that chooses its mode.
    """

    def __init__(self, listener: Listener, pace: Pace) -> None:
        self.listener = listener
        self.pace = pace
        self._readers: dict[RowShape, RowReader] = {}
        self._tables: dict[TableName, WatchedTable] = {}
        self.survey = TableSurvey(listener, self._tables.keys(), pace)
        self._inbox: list[str] = []
        self._log_wakes = 0
        self._has_overflown = False
        self._is_taking_soon = False
        self._retirements: dict[RowWatch, asyncio.TimerHandle] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @classmethod
    def of(cls, engine: AsyncEngine, pace: Pace | None = None) -> "Dispatcher":
        """Return the running event loop's dispatcher for an engine."""
        listener = Listener.of(engine)
        return listener.companion(cls, lambda: cls(listener, pace or Pace()))

    @property
    def tables(self) -> Mapping[TableName, WatchedTable]:
        """Return the tables that are watched now."""
        return self._tables

    @property
    def rows(self) -> Collection[RowWatch]:
        """Return the waits by model."""
        return [reader.rows for reader in self._readers.values()]

    def subscribe(
        self,
        shape: RowShape,
        primary_key: PrimaryKey,
        *,
        condition: Condition | None = None,
        attributes: Sequence[str] | None,
        seen: Mapping[str, Any] | None,
        needs: Iterable[str] = (),
        interval: float,
    ) -> Subscription:
        """Wait for a condition on a row: by default, to differ from `seen` or from a first read.

        `attributes` are the attributes whose changes concern the wait, `needs` are read as well.
        """
        reader = self._reader_of(shape)
        # Before the wait is added: a shorter interval must not wait for the end of a longer one.
        was = min(reader.rows.intervals, default=math.inf)
        subscription = Subscription(
            reader.rows, primary_key, condition or Changes(), attributes, seen, needs, interval
        )
        reader.rows.add(subscription)
        for table in shape.tables:
            watch = self._tables[shape.name_of(table)].watch
            watch.wait_added(subscription.names, is_hurried=interval < was)
        # The first read gives the baseline, or ends a wait whose condition holds already.
        reader.note([subscription.row_id])
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Remove a wait, with or without a result."""
        subscription.future.cancel()
        rows = subscription.watch
        rows.remove(subscription)
        if not rows:
            self._retire_later(rows)

    def read_soon(self, rows: RowWatch, row_ids: Iterable[Any]) -> asyncio.Future[int]:
        """Read rows soon; the future returns how many waits the read ended, or raises its error."""
        return self._readers[rows.shape].read_soon(row_ids)

    def load(self, shape: RowShape, primary_key: PrimaryKey) -> asyncio.Future[Any]:
        """Load a row as a detached object, together with others; None if there is no row."""
        return self._readers[shape].load(primary_key)

    def follow(self, names: Sequence[TableName], reader: HintReader) -> None:
        """Pass every hint of some tables to `reader` until `unfollow`."""
        for name in names:
            self._table(name).readers.add(reader)
        if self.are_armed(names):
            reader.armed()

    def unfollow(self, names: Sequence[TableName], reader: HintReader) -> None:
        """Stop passing hints to `reader`."""
        for name in names:
            self._tables[name].readers.discard(reader)
            self._retire_table(name)

    def are_armed(self, names: Iterable[TableName]) -> bool:
        """Tell whether no hint of these tables will be lost from now on."""
        return all(self._tables[name].watch.is_armed for name in names)

    def connected(self) -> None:
        """Arm the watched tables again."""
        for table in self._tables.values():
            table.watch.wake()

    def degraded(self) -> None:
        """Switch the tables to polling."""
        for table in self._tables.values():
            table.watch.wake()
            table.interrupt("the listening connection was lost")

    def received(self, channel: str, payload: str) -> None:
        """Store a payload for the next turn; beyond the limit, only that payloads were dropped."""
        if channel == LOG_CHANNEL:
            self._log_wakes += 1
        elif channel == CHANNEL and len(self._inbox) < INBOX_LIMIT:
            self._inbox.append(payload)
        else:
            self._has_overflown = True
        if not self._is_taking_soon:
            # All payloads of a burst are handled in one turn, not each in its callback.
            self._is_taking_soon = True
            asyncio.get_running_loop().call_soon(self._take)

    async def stopped(self) -> None:
        """Handle the end of the listener: remaining waits go on by polling."""
        for reader in tuple(self._readers.values()):
            self._retire(reader.rows)
        # Readers that poll on without the listener must not be waited for.
        living = {table.task for table in self._tables.values()}
        living |= {reader.task for reader in self._readers.values()}
        await asyncio.gather(*(self._tasks - living), return_exceptions=True)

    def _reader_of(self, shape: RowShape) -> RowReader:
        reader = self._readers.get(shape)
        if reader is None:
            rows = RowWatch(shape)
            reader = RowReader(rows, self.listener, self.pace, self._key_columns, self._spawn)
            self._readers[shape] = reader
            for table in shape.tables:
                self._table(shape.name_of(table)).rows[rows] = table
        return reader

    def _table(self, name: TableName) -> WatchedTable:
        if name not in self._tables:
            if not self._tables:
                self.listener.attach(self)
            table = WatchedTable(name, self.listener, self.survey, self.pace, self.read_soon)
            self._tables[name] = table
            table.task = self._spawn(table.watch.run(), f"rowsignal {table.watch.label}")
        return self._tables[name]

    def _spawn(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)  # the event loop keeps only a weak reference
        task.add_done_callback(self._tasks.discard)
        return task

    def _retire_later(self, rows: RowWatch) -> None:
        earlier = self._retirements.pop(rows, None)
        if earlier is not None:
            earlier.cancel()
        loop = asyncio.get_running_loop()
        self._retirements[rows] = loop.call_later(self.pace.idle_timeout, self._retire, rows)

    def _retire(self, rows: RowWatch) -> None:
        timer = self._retirements.pop(rows, None)
        if timer is not None:
            timer.cancel()
        reader = self._readers.get(rows.shape)
        # A wait may have come since the timer was set, and another reader of the same shape.
        if rows or reader is None or reader.rows is not rows:
            return
        del self._readers[rows.shape]
        reader.close()
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
        if not self._tables:
            self.listener.detach(self)

    def _take(self) -> None:
        """Handle the payloads that have arrived; an error affects one table or model only."""
        self._is_taking_soon = False
        inbox, self._inbox = self._inbox, []
        if self._has_overflown:
            self._has_overflown = False
            self._guard(self._distrust_hints)
        if self._log_wakes:
            self._guard(self._follow_log)
        hints: dict[str, list[Hint]] = {}
        for payload in inbox:
            hint = self._decode(payload)
            if hint is not None:
                hints.setdefault(hint.token, []).append(hint)
        for table in tuple(self._tables.values()):
            for token in table.watch.tokens & hints.keys():
                self._guard(self._hand_out, table, hints[token])

    def _guard(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception as error:
            logger.exception(
                "hints could not be passed to the waits; all waited-for rows are read instead"
            )
            self.listener.hooks.task_restarted(task="dispatcher", reason=type(error).__name__)
            for reader in self._readers.values():  # read all rows, since the hints are lost
                reader.note(reader.rows.row_ids)

    def _decode(self, payload: str) -> Hint | None:
        try:
            hint = Hint.decode(payload)
        except PayloadError as error:
            logger.debug("ignoring a notification that is malformed or forged: %s", error)
            self.listener.hooks.notified(accepted=False)
            return None
        self.listener.hooks.notified(accepted=True)
        return hint

    def _distrust_hints(self) -> None:
        for table in self._tables.values():
            table.interrupt("more notifications arrived than could be taken in")
        for table in self._tables.values():
            table.trust()
        for reader in self._readers.values():
            reader.note(reader.rows.row_ids)

    def _follow_log(self) -> None:
        """Read all waited-for rows of logged tables: a notification of the log names no row."""
        wakes, self._log_wakes = self._log_wakes, 0
        for table in self._tables.values():
            if table.watch.is_logged:
                table.watch.woken(wakes)
                for rows in table.rows:
                    self._readers[rows.shape].note(rows.row_ids)

    def _hand_out(self, table: WatchedTable, hints: list[Hint]) -> None:
        table.watch.hinted(hints)
        for rows, of_model in table.rows.items():
            self._readers[rows.shape].hinted(of_model, hints)
        for reader in tuple(table.readers):
            for hint in hints:
                reader.hinted(hint)

    def _key_columns(self, rows: RowWatch) -> KeyColumns:
        names = map(rows.shape.name_of, rows.shape.tables)
        tables = (self._tables.get(name) for name in names)
        return tuple(None if table is None else table.watch.hinted_key for table in tables)
