"""The change log: every committed change of every logged table, exactly once between positions."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, TypeVar
from uuid import UUID

import asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.batches import Batch, BatchMaker, Texts
from rowsignal.change_log.open_windows import OpenWindows, WindowCursor
from rowsignal.change_log.positions import (
    MAX_LENGTH,
    AnyPosition,
    Position,
    Snapshot,
    StoredPosition,
    decode,
    stored_prefix,
    window_prefix,
)
from rowsignal.change_log.quick_reader import QuickReader
from rowsignal.change_log.reader import (
    ANSWER,
    Head,
    IncarnationMissing,
    PositionLost,
    Window,
    WindowRead,
    explained,
    log_transaction,
)
from rowsignal.change_log.records import RELATION, Record
from rowsignal.changes import Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import beside, driver_of, lent, throw_away
from rowsignal.postgres.statements import query

PAGE = 1000
ID_DIGITS = 19  # of the highest id, 2**63 - 1

Result = TypeVar("Result")


class ChangeLog:
    """The change log of one database, read through side connections.

    Every committed change lies between exactly two positions, and changes of a row come in their
    order; a long transaction delays only its own changes. A position stays valid until retention
    prunes the changes after it, or a crash, a promotion or a restore begins another log.
    """

    def __init__(self, engine: AsyncEngine, url: str | None = None) -> None:
        """Read the log of an engine's database, or of the same at another address (`url`)."""
        self._source, self._url = engine, url
        self._engine = beside(engine, url)
        # Not from the same pool: in a pool of one connection the two would wait for each other.
        self._quick = QuickReader(beside(engine, url))
        self._windows = OpenWindows()
        self._last: tuple[str, AnyPosition] | None = (
            None  # most reads begin where another has ended
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the log's connections."""
        await self._windows.aclose()
        await self._quick.close()
        await self._engine.dispose()

    async def position(self) -> str:
        """Return the present position: every change that is not yet visible comes after it."""
        return await self._position_at(await self._started(self._head))

    async def writers(self) -> frozenset[str]:
        """Return the open transactions that write to logged tables, as virtual transaction ids.

        A reader that stops polling must keep polling until these transactions end: their triggers
        ran before it registered. Prepared transactions are among them.
        """
        return frozenset(await self._ask("log_writers") or ())

    async def read(
        self,
        after: str,
        *,
        until: str | None = None,
        tables: Sequence[QualifiedName] | None = None,
        limit: int = PAGE,
        is_durable: bool = False,
    ) -> Batch | Reset:
        """Return up to `limit` of the changes after a position, in order, or `Reset` for a gap.

        `until`, the position of a whole batch, ends the read there instead of now. `tables`
        names (schema, table) pairs; changes of other tables, and of dropped ones, are left out.
        With `is_durable` nothing is returned that a crash of the server could take back (commits
        with `synchronous_commit = off`).
        Raises `PositionError` for text that is no position, `StandbyError` on a standby.
        """
        request = ReadRequest(after, until, None if tables is None else tuple(tables), limit)
        start = self._decoded(after)
        page = self._next_page if _is_inside(start) else self._first_page
        batch = await self._or_reset(partial(page, start, request))
        if isinstance(batch, Batch) and batch.changes:
            await self._flush(is_asked=is_durable)
        return batch

    async def pages(
        self,
        after: str,
        *,
        tables: Sequence[QualifiedName] | None = None,
        size: int = PAGE,
        is_durable: bool = False,
    ) -> AsyncGenerator[Batch | Reset, None]:
        """Yield the changes between a position and now, to catch up after a long absence.

        Holds one transaction open for the whole read, so that the server sorts only once; memory
        holds two pages of `size` changes. Ends at the snapshot of its beginning.
        A `Reset` is the last thing it yields. Otherwise as `read`.
        """
        is_last = False
        while not is_last:
            begun = self._window_pages(after, tables, size, is_durable=is_durable)
            async with aclosing(begun) as pages:
                async for batch, is_final in pages:
                    yield batch
                    after, is_last = batch.position or after, is_final

    async def _window_pages(
        self, after: str, tables: Sequence[QualifiedName] | None, size: int, *, is_durable: bool
    ) -> AsyncGenerator[tuple[Batch | Reset, bool], None]:
        """Yield the pages of one transaction, and whether they are the last there are."""
        try:
            async with log_transaction(self._engine) as transaction:
                window = await transaction.window(decode(after))
                relations = None if tables is None else await transaction.relations(tables)
                texts = await self._texts(window)
                maker = BatchMaker(window, texts, transaction.names, transaction.parts)
                await self._flush(is_asked=is_durable)
                async for records in transaction.pages(window, relations, size):
                    yield maker.make(records, is_rest=len(records) < size), window.is_last
        except IncarnationMissing:  # then there was no page yet: try again in the new log
            await self._start()
        except PositionLost as lost:
            yield await self._reset(lost), True

    async def glance(
        self, after: str, tables: Sequence[QualifiedName]
    ) -> Batch | Reset | Counter[QualifiedName]:
        """Return the changes after a position if there are few; else their number per table.

        The numbers are those of a sample: counting all changes of a huge transaction takes long.
        """
        start = self._decoded(after)
        request = ReadRequest(after, None, tuple(tables), PAGE)
        read = None
        if isinstance(start, Position) and not _is_inside(start):
            # One more than a page: whether there is more is known without counting.
            read = await self._or_reset(partial(self._quick.read, start, tables, PAGE + 1))
        if isinstance(read, Reset):
            return read
        if read is not None:
            if len(read.records) <= PAGE:
                return await self._batch(read, PAGE)
            names = (read.names.get(record[RELATION]) for record in read.records)
            return Counter(name for name in names if name is not None)
        batch = await self._or_reset(partial(self._first_page, start, request))
        if isinstance(batch, Reset) or batch.is_complete:
            return batch
        return Counter((change.schema, change.table) for change in batch.changes)

    async def _first_page(self, start: AnyPosition, request: "ReadRequest") -> Batch:
        """Return the first changes after a position."""
        limit, tables = request.limit, request.tables
        if request.until is None and limit <= PAGE and isinstance(start, Position):
            # The quick statement reads up to its own snapshot, which cannot be one that the caller
            # names.
            read = None if start.upto else await self._quick.read(start, tables, limit + 1)
            if read is not None and len(read.records) <= limit:
                return await self._batch(read, limit)
        end = None if request.until is None else decode(request.until)
        return await self._batch(await self._read_window(start, end, tables, limit + 1), limit)

    async def _next_page(self, start: AnyPosition, request: "ReadRequest") -> Batch:
        """Return changes after a position within a window, from the cursor at that place."""
        windows = self._windows
        cursor = windows.take(request.place)
        if cursor is None:
            # Each cursor is a connection with an open transaction: without room, read the window
            # anew.
            if not windows.has_room:
                return await self._first_page(start, request)
            windows.add()
            cursor = WindowCursor(beside(self._source, self._url), request.limit)
        try:
            if not cursor.is_open:
                await cursor.open(start, request.tables, self._texts)
            batch, window = await cursor.next()
        except BaseException:
            await windows.discard(cursor)
            raise
        if cursor.is_at_end:
            windows.drop(cursor)
            end = None if request.until is None else decode(request.until)
            # The window ends at a snapshot of before, and more may have been committed since.
            is_last = isinstance(end, Position) and window.upto == (end.upto or end.seen)
            return replace(batch, is_complete=is_last)
        windows.park(replace(request, after=batch.position).place, cursor)
        return batch

    async def _batch(self, read: WindowRead, limit: int) -> Batch:
        has_inner = len(read.records) > 1
        texts = await self._texts(read.window, has_inner=has_inner)
        maker = BatchMaker(read.window, texts, read.names, read.parts)
        return maker.make(read.records[:limit], is_rest=len(read.records) <= limit)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator["LogSnapshot"]:
        """Open a REPEATABLE READ, READ ONLY transaction; yield its connection and its position.

        The rows that its connection reads plus every change after its position are complete,
        without gap or duplicate. Close it soon: it keeps vacuum from cleaning up.
        """
        await self.position()  # begins the log if there is none, and raises its errors
        async with lent(self._engine) as connection:
            reading = await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
            async with asyncio.timeout(ANSWER):
                answer = await reading.exec_driver_sql(query("log_head"))
            # The snapshot of this query is that of the whole transaction (PostgreSQL manual,
            # 13.2.2).
            position = await self._position_at(Head.of(answer.mappings().one()))
            yield LogSnapshot(position, reading)

    async def _read_window(
        self,
        start: AnyPosition,
        end: AnyPosition | None,
        tables: Sequence[QualifiedName] | None,
        limit: int,
    ) -> WindowRead:
        async with log_transaction(self._engine) as transaction:
            window = await transaction.window(start, end)
            relations = None if tables is None else await transaction.relations(tables)
            records: Sequence[Record] = ()
            if not window.is_empty:
                records = await transaction.changes(window, relations, limit)
        return WindowRead(window, records, transaction.names, transaction.parts)

    async def _head(self) -> Head:
        async with log_transaction(self._engine) as transaction:
            return await transaction.head()

    async def _started(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        try:
            return await operation()
        except IncarnationMissing:
            await self._start()
            return await operation()

    async def _or_reset(self, operation: Callable[[], Awaitable[Result]]) -> Result | Reset:
        try:
            return await self._started(operation)
        except PositionLost as lost:
            return await self._reset(lost)

    async def _reset(self, lost: PositionLost) -> Reset:
        return Reset(reason=f"Changes may be missing: {lost}.", position=await self.position())

    def _decoded(self, text: str) -> AnyPosition:
        return self._last[1] if self._last is not None and self._last[0] == text else decode(text)

    async def _position_at(self, head: Head) -> str:
        text = Position(head.incarnation, head.now).encode()
        return text if len(text) <= MAX_LENGTH else await self._store(head.incarnation, head.now)

    async def _texts(self, window: Window, *, has_inner: bool = True) -> Texts:
        """Return the texts of positions in a window; the server stores positions that are too long.

        Without inner positions (before the last change) the prefix is empty.
        """
        log, seen, upto = window.incarnation, window.seen, window.upto
        position = Position(log, upto)
        whole = position.encode()
        self._last = whole, position
        if len(whole) > MAX_LENGTH:
            whole = await self._store(log, upto)
        if not has_inner:
            return Texts("", whole)
        prefix = window_prefix(log, seen, upto)
        if len(prefix) + ID_DIGITS > MAX_LENGTH:
            await self._check_length(seen)
            key = await self._ask("log_store_position", str(seen), str(upto))
            prefix = stored_prefix(log, key)
        return Texts(prefix, whole)

    async def _check_length(self, seen: Snapshot) -> None:
        """Refuse a forged position that is too long: the server would have to store it."""
        if len(seen.running) > await self._ask("log_max_running"):
            raise PositionLost("the position names more transactions than can run at once")

    async def _store(self, incarnation: UUID, snapshot: Snapshot) -> str:
        key = await self._ask("log_store_position", str(snapshot), None)
        return StoredPosition(incarnation, key).encode()

    async def _flush(self, *, is_asked: bool) -> None:
        if is_asked and await self._ask("log_has_unflushed"):
            async with self._driver() as driver:
                await driver.execute(query("log_flush"))

    async def _start(self) -> None:
        """Begin a new log. No timeout: after a restore this may delete millions of rows."""
        async with self._driver() as driver:
            await driver.execute(query("log_start"))

    async def _ask(self, name: str, *arguments: object) -> Any:
        async with self._driver() as driver:
            return await driver.fetchval(query(name), *arguments, timeout=ANSWER)

    @asynccontextmanager
    async def _driver(self) -> AsyncIterator[asyncpg.Connection]:
        async with lent(self._engine) as connection:
            try:
                yield await driver_of(connection)
            except asyncpg.PostgresError as error:
                raise explained(error) from error
            # A query that was cancelled may still be running on this connection.
            except BaseException:
                await throw_away(connection)
                raise


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """One read: after a position, up to another position or now, of some tables or all."""

    after: str
    until: str | None
    tables: tuple[QualifiedName, ...] | None
    limit: int

    @property
    def place(self) -> Hashable:
        """The place at which a cursor must stand to continue this read."""
        return self.after, self.tables, self.limit


def _is_inside(position: AnyPosition) -> bool:
    """Tell whether a position lies within a window that was read in part."""
    if isinstance(position, Position):
        return position.upto is not None
    return position.last_id is not None


@dataclass(frozen=True, slots=True)
class LogSnapshot:
    """A connection with one snapshot, and the position from which changes continue it."""

    position: str
    connection: AsyncConnection
