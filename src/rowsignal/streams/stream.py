"""Streams of committed changes of tables, from now or from a position."""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Generic, Self, overload

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.positions import decode
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Change, ChangeFilter, Model, Operation, Reset
from rowsignal.listener import Listener
from rowsignal.postgres.json_rows import all_rows, one_view, pin_settings
from rowsignal.streams.feed import ChangeFeed
from rowsignal.streams.loader import Loaded, RowChange
from rowsignal.streams.sources import SourceBatch
from rowsignal.streams.tables import Columns, Watched, WatchedTables, WatchRequest
from rowsignal.streams.visibility import VisibleKeys

Item = Change[Any] | Reset


@overload
def watch(
    engine: AsyncEngine,
    model: type[Model],
    /,
    *,
    pk: object = None,
    operations: Iterable[Operation | str] | None = None,
    columns: Columns | None = None,
    predicate: Callable[[Change[Model]], bool] | None = None,
    after: str | None = None,
    snapshot: bool = False,
    rows: bool = False,
) -> "ChangeStream[Model]": ...
@overload
def watch(
    engine: AsyncEngine,
    *models: Watched,
    pk: object = None,
    operations: Iterable[Operation | str] | None = None,
    columns: Columns | None = None,
    predicate: Callable[[Change[Any]], bool] | None = None,
    after: str | None = None,
    snapshot: bool = False,
    rows: bool = False,
) -> "ChangeStream[Any]": ...
def watch(
    engine: AsyncEngine,
    *models: Watched,
    pk: object = None,
    operations: Iterable[Operation | str] | None = None,
    columns: Columns | None = None,
    predicate: Callable[[Change[Any]], bool] | None = None,
    after: str | None = None,
    snapshot: bool = False,
    rows: bool = False,
) -> "ChangeStream[Any]":
    """Watch tables, as models, for changes.

        async with watch(engine, Order, Item) as changes:
            async for change in changes:
                print(change.operation, change.table, change.key)

    Yields `Change` objects, and a `Reset` wherever changes may be missing. `pk` (or a list of
    them), `operations`, `columns` (of which an update must have changed one) and `predicate`
    narrow what is yielded. Any number of streams share one connection and one reading of the log.

    Logged tables (`install_triggers(..., log=True)`) are exact: every committed change once, those
    of a row in order. `after`, the `position` of a change or of the stream, resumes after it, as
    long as the log is kept. Tables without a log are live only: changes while no
    process listens are lost, a `Reset` reports that, and there are no positions.

    `snapshot` yields the current rows first, as inserts, then every change since, without gap;
    `rows` (and `snapshot`) fills `Change.row` with the row as it is now: a row that is gone by then
    comes as a delete, whatever happened to it before. Rows of a model are as the ORM loads them,
    by attribute name, and `Change.instance` is an object of the model; those of a `Table` are as
    PostgreSQL's JSON has them. A row that a model's types cannot take comes as a `Reset`.
    """
    if after is not None:
        decode(after)
        if snapshot:
            raise ValueError("after= continues and snapshot=True starts over: pass one of them.")
    wanted = ChangeFilter(
        operations=None if operations is None else frozenset(map(Operation, operations)),
        predicate=predicate,
    )
    request = WatchRequest(models, wanted, columns, pk)
    return ChangeStream(
        engine, request, after=after, has_snapshot=snapshot, has_rows=rows or snapshot
    )


class ChangeStream(Generic[Model]):
    """An asynchronous iterator over changes, open inside `async with`.

    `position` is where the stream has come to, including changes that its filters left out; keep
    it to resume there. None for tables without a log, and until a snapshot is over.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        request: WatchRequest,
        *,
        after: str | None,
        has_snapshot: bool,
        has_rows: bool,
    ) -> None:
        self.position: str | None = None
        self._engine = engine
        self._request = request
        self._after = after
        self._has_snapshot = has_snapshot
        self._has_rows = has_rows
        self._ready: deque[tuple[Item | None, str | None]] = deque()
        self._stack = AsyncExitStack()
        self._reading = AsyncExitStack()
        self._tables: WatchedTables | None = None
        self._feed: ChangeFeed | None = None
        self._snapshot: AsyncIterator[list[Change[Any]]] | None = None
        self._pending: SourceBatch | None = None
        self._visible = VisibleKeys(is_known=after is None)

    async def __aenter__(self) -> Self:
        """Find the tables and start."""
        tables = self._tables = await self._request.find_tables(self._engine)
        begin = self._begin_snapshot if self._has_snapshot else None
        feed = ChangeFeed(self._engine, tables.names, after=self._after, begin=begin)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._reading.aclose)
            self._feed = await stack.enter_async_context(feed)
            self._check(feed)
            # During a snapshot there is no place to resume: rows are missing until it is over.
            if feed.is_logged and not self._has_snapshot:
                self.position = feed.position
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change[Model] | Reset:
        feed, tables = self._opened()
        while True:
            while self._ready:
                item, position = self._ready.popleft()
                if feed.is_logged:
                    self.position = position or self.position
                if item is not None:
                    return item
            await self._prepare(feed, tables)

    def _opened(self) -> tuple[ChangeFeed, WatchedTables]:
        if self._feed is None or self._tables is None:
            raise RuntimeError(
                "A stream is read inside its block: async with watch(...) as changes:"
                " async for change in changes: ..."
            )
        return self._feed, self._tables

    def _check(self, feed: ChangeFeed) -> None:
        for state in feed.states.values():
            if self._after is not None and state.capture.kind != "log":
                raise ValueError(
                    f"{state.label} has no change log, so nothing can be resumed;"
                    " install_triggers(..., log=True) makes one."
                )
            if state.fault is not None:
                self._ready.append((Reset(reason=state.fault), None))

    async def _prepare(self, feed: ChangeFeed, tables: WatchedTables) -> None:
        """Load the next items; a cancellation loses nothing."""
        if self._snapshot is not None:
            page = await anext(self._snapshot, None)
            if page is not None:
                self._ready.extend((tables.shown(change), None) for change in page)
                return
            self._snapshot = None
            await self._reading.aclose()
        # A batch is kept until its rows are loaded: a cancelled load is repeated.
        if self._pending is None:
            self._pending = await feed.next()
        batch = self._pending
        wanted = tables.columns if self._has_rows else {}
        loaded = await feed.load(batch, wanted, prefers_log=not self._has_rows)
        self._pending = None
        for it in loaded:
            item = self._found(feed, it)
            if isinstance(item, Change):
                item = tables.shown(item)
            if item is not None:
                self._ready.append((item, item.position))
        # The position moves on also over changes that the filters left out.
        self._ready.append((None, batch.position))

    def _found(self, feed: ChangeFeed, it: Loaded | Reset) -> Item | None:
        """Return the change to yield, which agrees with its row.

        A missing row is a delete, whatever was logged, and an existing row is none. So a reader
        that keeps rows by these changes ends up with the table's content, in whatever order the
        triggers of one statement logged them.
        """
        if isinstance(it, Reset):
            return it
        is_secured = feed.shapes[it.table].has_row_security
        if is_secured and (reset := self._visible.unknown(it)) is not None:
            return reset
        if is_secured and not self._visible.is_told(it):
            return None
        # Without rows nothing was read to compare the change with.
        if it.change.key is None or not (self._has_rows or is_secured):
            return it.change
        return _as_found(it, has_row=self._has_rows)

    async def _begin_snapshot(self, feed: ChangeFeed) -> str | None:
        if any(state.capture.kind == "log" for state in feed.states.values()):
            log = LogTail.of(self._engine).log
            seen = await self._reading.enter_async_context(log.snapshot())
            connection, position = seen.connection, seen.position
        else:
            view = one_view(self._engine, Listener.of(self._engine).listen_url)
            connection, position = await self._reading.enter_async_context(view), None
        self._snapshot = self._rows(feed, connection)
        return position

    async def _rows(
        self, feed: ChangeFeed, connection: AsyncConnection
    ) -> AsyncIterator[list[Change[Any]]]:
        # The settings of this role decide how dates and floats are written.
        await pin_settings(connection, is_local=True)
        _, tables = self._opened()
        for name, shape in feed.shapes.items():
            columns = sorted(tables.columns[name].intersection(shape.columns))
            async for rows in all_rows(connection, shape, columns):
                changes = [
                    Change(
                        operation=Operation.INSERT,
                        schema=name[0],
                        table=name[1],
                        key=row.key,
                        row=row.values,
                    )
                    for row in rows
                ]
                if shape.has_row_security:
                    self._visible.add(name, (row.key for row in rows))
                yield changes


def _as_found(it: RowChange, *, has_row: bool) -> Change:
    """Return a change that agrees with the present row."""
    change, row = it.change, it.row if has_row else None
    if it.row is None:
        return replace(change, operation=Operation.DELETE, changed=None, row=None)
    if change.operation is Operation.DELETE:
        return replace(change, operation=Operation.UPDATE, row=row)
    return replace(change, row=row)
