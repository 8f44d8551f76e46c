"""Streams: the changes of tables as they are committed, from now or from a position on."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any, Self

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.positions import decode
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Change, ChangeFilter, Operation, Reset
from rowsignal.dispatcher import Dispatcher
from rowsignal.listener import Listener
from rowsignal.postgres.json_rows import one_view
from rowsignal.streams.sources import (
    HintSource,
    Item,
    LogSource,
    Portion,
    RowShower,
    SnapshotSource,
    Source,
)
from rowsignal.streams.tables import Columns, StreamedTable, TableName, find_tables

LIMIT = 10_000


def watch(
    engine: AsyncEngine,
    *models: type[Any],
    pk: object = None,
    operations: Iterable[Operation | str] | None = None,
    columns: Columns | None = None,
    predicate: Callable[[Change], bool] | None = None,
    after: str | None = None,
    snapshot: bool = False,
    rows: bool = False,
) -> "ChangeStream":
    """Watch tables, as models, for changes.

        async with watch(engine, Order, Item) as changes:
            async for change in changes:
                print(change.operation, change.table, change.key)

    Yields `Change` objects, and a `Reset` wherever changes may be missing. `pk` (or a list of
    them), `operations`, `columns` (of which an update must have changed one) and `predicate`
    narrow what is yielded. Any number of streams share one connection and one reading of the log.

    Logged tables (`install_triggers(..., log=True)`) are exact: every committed change once, those
    of a row in order. `after`, the `position` of a change or of the stream, resumes after it, as
    long as the log is kept. Tables without a log are live only: what happened while nobody
    listened is not told, a `Reset` says so, and there are no positions.

    `snapshot` yields the current rows first, as inserts, then every change since, without gap;
    `rows` (and `snapshot`) fills `Change.row` with the row as it is now: a row that is gone by then
    comes as a delete, whatever happened to it before.
    """
    if after is not None:
        decode(after)
        if snapshot:
            raise ValueError("after= continues and snapshot=True starts over: pass one of them.")
    wanted = ChangeFilter(
        operations=None if operations is None else frozenset(map(Operation, operations)),
        predicate=predicate,
    )
    plan = (models, wanted, columns, pk)
    return ChangeStream(engine, plan, after=after, has_snapshot=snapshot, has_rows=rows or snapshot)


class ChangeStream:
    """An asynchronous iterator over changes, open inside `async with`.

    `position` is where the stream has come to, including changes that its filters left out; keep
    it to resume there. None for tables without a log, and until a snapshot is over.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        plan: tuple[Any, ...],
        *,
        after: str | None,
        has_snapshot: bool,
        has_rows: bool,
    ) -> None:
        self.position: str | None = None
        self._engine = engine
        self._plan = plan
        self._after = after
        self._has_snapshot = has_snapshot
        self._has_rows = has_rows
        self._ready: deque[tuple[Item | None, str | None]] = deque()
        self._stack = AsyncExitStack()
        self._tables: dict[TableName, StreamedTable] = {}
        self._snapshot: SnapshotSource | None = None
        self._sources: list[Source] = []
        self._coming: dict[asyncio.Future[Portion], Source] = {}
        self._pending: Portion | None = None
        self._reading = AsyncExitStack()
        self._shower = RowShower(Listener.of(engine).own, self._tables)
        self._has_positions = False

    async def __aenter__(self) -> Self:
        """Find the tables and begin; what keeps that from happening is raised."""
        self._tables |= await find_tables(self._engine, *self._plan)
        logged = [table for table in self._tables.values() if table.is_logged]
        hinted = [table for table in self._tables.values() if not table.is_logged]
        if hinted and self._after is not None:
            raise ValueError(
                f"{'.'.join(hinted[0].name)} has no change log, so nothing can be resumed;"
                " install_triggers(..., log=True) makes one."
            )
        async with AsyncExitStack() as stack:
            await self._open(stack, logged, hinted)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exception: object) -> None:
        for task in self._coming:
            task.cancel()
        await asyncio.gather(*self._coming, return_exceptions=True)
        await self._stack.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        while True:
            while self._ready:
                item, position = self._ready.popleft()
                if self._has_positions:
                    self.position = position or self.position
                if item is not None:
                    return item
            self._prepare(await self._next_portion())

    def _prepare(self, portion: Portion) -> None:
        wanted = filter(self._is_wanted, portion.items)
        self._ready.extend((item, item.position) for item in wanted)
        self._ready.append((None, portion.position))

    def _is_wanted(self, item: Item) -> bool:
        if isinstance(item, Reset):
            return True
        table = self._tables.get((item.schema, item.table))
        return table is None or table.wants(item)

    async def _open(
        self,
        stack: AsyncExitStack,
        logged: Sequence[StreamedTable],
        hinted: Sequence[StreamedTable],
    ) -> None:
        after = self._after
        if hinted:  # first: what a snapshot does not show is hinted from here on
            hints = HintSource(Dispatcher.of(self._engine), hinted, LIMIT)
            self._sources.append(await stack.enter_async_context(hints))
        if self._has_snapshot:
            after = await self._open_snapshot(stack, has_log=bool(logged))
        if logged:
            names = [table.name for table in logged]
            subscription = LogTail.of(self._engine).subscribe(names, after=after, limit=LIMIT)
            changes = await stack.enter_async_context(subscription)
            self._sources.append(LogSource(changes))
            self._has_positions = not hinted
            if self._has_positions and not self._has_snapshot:
                self.position = changes.position

    async def _open_snapshot(self, stack: AsyncExitStack, *, has_log: bool) -> str | None:
        await stack.enter_async_context(self._reading)
        if has_log:
            log = LogTail.of(self._engine).log
            seen = await self._reading.enter_async_context(log.snapshot())
            connection, position = seen.connection, seen.position
        else:
            view = one_view(self._engine)
            connection, position = await self._reading.enter_async_context(view), None
        self._snapshot = SnapshotSource(connection, list(self._tables.values()))
        return position

    async def _next_portion(self) -> Portion:
        """Return what is next, with rows; a cancellation on the way loses nothing."""
        if self._snapshot is not None:
            portion = await self._snapshot.next()
            if portion is not None:
                return portion
            self._snapshot = None
            await self._reading.aclose()
        if self._pending is None:
            self._pending = await self._take()
        items = self._pending.items
        if self._has_rows:
            items = await self._shower.show(items)
        portion, self._pending = replace(self._pending, items=items), None
        return portion

    async def _take(self) -> Portion:
        if len(self._sources) == 1:
            return await self._sources[0].next()
        for source in set(self._sources).difference(self._coming.values()):
            self._coming[asyncio.ensure_future(source.next())] = source
        done, _ = await asyncio.wait(self._coming, return_when=asyncio.FIRST_COMPLETED)
        first = done.pop()
        del self._coming[first]
        return first.result()
