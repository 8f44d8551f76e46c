"""`live_query`: one shared query for equal statements, run again when its tables change."""

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Self
from weakref import WeakKeyDictionary

from sqlalchemy import Select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import RowSignalError
from rowsignal.listener import OUTAGES, Listener, reconnect_delays
from rowsignal.live_queries.results import Result, key_of, read_as_needed
from rowsignal.live_queries.sources import TableChanges
from rowsignal.postgres.connections import beside_with_options
from rowsignal.postgres.errors import sqlstate

logger = logging.getLogger("rowsignal.live_queries")

SAFETY_INTERVAL = 30.0  # triggers may be installed or dropped
GONE = ("08", "53", "57")  # SQLSTATE classes of an unavailable server


def live_query(
    engine: AsyncEngine, statement: Select[Any], *, interval: float = 0.1, poll: float = 1.0
) -> "LiveQuery":
    """Run a SELECT now, and again whenever its tables have changed.

        async with live_query(engine, select(Order).where(Order.status == "open")) as results:
            async for orders in results:
                show(orders)

    Yields the result as a list, at first and whenever it changes. A statement of one entity or
    column yields its values, as `session.scalars` does, a statement of several yields rows. Objects
    are detached, and shared by all readers of an equal statement on the engine in this event loop:
    one query serves them all, at most every `interval` seconds. A slow reader gets the newest
    result and skips older ones.

    Tables with triggers report their changes, with or without a log. Tables without triggers, and
    views, are polled: the query runs every `poll` seconds. All readers get an error of the query;
    while the server is unavailable they keep the last result.
    """
    if interval < 0 or poll <= 0:
        raise ValueError("interval is not negative, and poll is a number of seconds above 0.")
    if not isinstance(statement, Select):
        raise TypeError(f"live_query() runs a select(...), not a {type(statement).__name__}.")
    return LiveQuery(engine, statement, interval, poll)


class LiveQuery:
    """An asynchronous iterator over the results of a statement, open inside `async with`."""

    def __init__(
        self, engine: AsyncEngine, statement: Select[Any], interval: float, poll: float
    ) -> None:
        self._engine = engine
        self._statement = statement
        self._pace = (interval, poll)
        self._query: _SharedQuery | None = None
        self._published = asyncio.Event()
        self._version = 0
        self._begun_before = 0  # reads that began before this reader

    async def __aenter__(self) -> Self:
        """Join the shared query, or start it."""
        self._query = _Queries.of(self._engine).join(self, self._statement, self._pace)
        self._begun_before = self._query.begun
        return self

    async def __aexit__(self, *_: object) -> None:
        query, self._query = self._query, None
        if query is not None:
            await query.leave(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Any]:
        """Wait for a new result."""
        query = self._query
        if query is None:
            raise RuntimeError("The live query is not open: use it in `async with`.")
        while True:
            self._published.clear()
            is_new = query.version != self._version and query.published > self._begun_before
            if is_new and query.result is not None:
                self._version = query.version
                return list(query.result.rows)
            if query.error is not None:
                raise query.error
            await self._published.wait()

    def publish(self) -> None:
        """Wake the reader."""
        self._published.set()


_known: WeakKeyDictionary[Listener, "_Queries"] = WeakKeyDictionary()


class _Queries:
    """The live queries of an engine in an event loop; they share a side pool."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.side_engine = beside_with_options(engine)
        self._queries: dict[object, _SharedQuery] = {}

    @classmethod
    def of(cls, engine: AsyncEngine) -> "_Queries":
        listener = Listener.of(engine)
        if listener not in _known:
            _known[listener] = cls(engine)
        return _known[listener]

    def join(
        self, reader: LiveQuery, statement: Select[Any], pace: tuple[float, float]
    ) -> "_SharedQuery":
        key = key_of(statement, *pace)
        query = self._queries.get(key)
        if query is None or query.error is not None:
            query = self._queries[key] = _SharedQuery(self, key, statement, pace)
        query.add(reader)
        return query

    async def forget(self, query: "_SharedQuery") -> None:
        if self._queries.get(query.key) is query:
            del self._queries[query.key]
        if not self._queries:
            await self.side_engine.dispose()


class _SharedQuery:
    """One statement, run for all its readers."""

    def __init__(
        self, queries: _Queries, key: object, statement: Select[Any], pace: tuple[float, float]
    ) -> None:
        self.key = key
        self.readers: set[LiveQuery] = set()
        self.result: Result | None = None
        self.version = 0
        self.begun = self.published = 0  # reads
        self.error: Exception | None = None
        self._queries = queries
        self._statement = statement
        self._interval, self._poll = pace
        self._is_unique = False
        self._has_changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(), name="rowsignal live query")

    def add(self, reader: LiveQuery) -> None:
        """Add a reader, whose first result must include everything committed by now."""
        self.readers.add(reader)
        self._has_changed.set()

    async def leave(self, reader: LiveQuery) -> None:
        """Remove a reader; the last one ends the query."""
        self.readers.discard(reader)
        if not self.readers:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            await self._queries.forget(self)

    async def _run(self) -> None:
        try:
            self._publish(await self._read())
            await self._follow()
        except Exception as error:  # noqa: BLE001 -- it is raised where results are asked for
            self.error = error
            self._wake_readers()

    async def _follow(self) -> None:
        """Run the query again and again, following the tables that it read."""
        delays = reconnect_delays()
        while True:
            tables = self.result.tables if self.result is not None else frozenset()
            try:
                async with TableChanges(
                    self._queries.engine, tables, self._has_changed.set
                ) as changes:
                    self._has_changed.set()  # changes before it listened
                    await self._keep_current(changes)
            except (*OUTAGES, RowSignalError) as error:
                if not is_away(error):
                    raise
                logger.warning("a live query cannot run and is tried again: %s", error)
                await asyncio.sleep(next(delays))
            else:
                delays = reconnect_delays()

    async def _keep_current(self, changes: TableChanges) -> None:
        """Run the query after each change; return when the tables must be examined again."""
        listening_since = time.monotonic()
        while True:
            await self._changed_within(self._poll if changes.is_polling else SAFETY_INTERVAL)
            began = time.monotonic()
            self._has_changed.clear()  # before the read, so that later changes cause another
            result = await self._read()
            is_same = self.result is not None and result.tables == self.result.tables
            self._publish(result)
            if not is_same or began - listening_since >= SAFETY_INTERVAL:
                return
            await asyncio.sleep(max(0.0, began + self._interval - time.monotonic()))

    async def _changed_within(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._has_changed.wait()

    async def _read(self) -> Result:
        self.begun += 1
        result, self._is_unique = await read_as_needed(
            self._queries.side_engine, self._statement, is_unique=self._is_unique
        )
        return result

    def _publish(self, result: Result) -> None:
        is_other = self.result is None or result.fingerprint != self.result.fingerprint
        self.result = result
        self.version += is_other
        self.published = self.begun
        self._wake_readers()

    def _wake_readers(self) -> None:
        for reader in self.readers:
            reader.publish()


def is_away(error: BaseException) -> bool:
    """Tell whether an error means that the server is unavailable, not that the statement failed."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or (sqlstate(error) or "08")[:2] in GONE
    return isinstance(error, OSError | TimeoutError | RowSignalError)
