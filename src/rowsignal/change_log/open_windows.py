"""Cursors on windows that are read in pages: the server sorts a window once for all readers.

A page that begins where another ended is fetched from the same cursor. A new query would have to
read and sort the whole window again.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.batches import Batch, BatchMaker, Texts
from rowsignal.change_log.positions import AnyPosition
from rowsignal.change_log.reader import LogTransaction, Window, log_transaction
from rowsignal.change_log.records import Record
from rowsignal.identifiers import QualifiedName

MAX_OPEN = 4  # connections, each with a window that the server has sorted
IDLE_TIMEOUT = 2.0  # an open transaction keeps vacuum from cleaning up
CLOSE_TIMEOUT = 2.0  # for a rollback and a commit
MAX_AGE = 20.0  # also of one that is read without a break

Key = Hashable


class WindowCursor:
    """A cursor on the rest of one window; it fetches the next page ahead."""

    def __init__(self, engine: AsyncEngine, size: int) -> None:
        self._engine = engine
        self._size = size
        self._stack = AsyncExitStack()
        self._opened_at = asyncio.get_running_loop().time()
        self._coming: asyncio.Future[list[Record]] | None = None
        self._transaction: LogTransaction | None = None
        self._maker: BatchMaker | None = None
        self.is_at_end = False

    async def open(
        self,
        after: AnyPosition,
        tables: Sequence[QualifiedName] | None,
        texts_of: Callable[[Window], Awaitable[Texts]],
    ) -> None:
        """Begin after a position within a window; raise `PositionLost`."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._engine.dispose)
            transaction = await stack.enter_async_context(log_transaction(self._engine))
            window = await transaction.window(after)
            relations = None if tables is None else await transaction.relations(tables)
            texts = await texts_of(window)
            cursor = await transaction.cursor(window, relations)
            self._fetch: Callable[[int], Awaitable[list[Record]]] = cursor.fetch
            self._transaction = transaction
            self._maker = BatchMaker(window, texts, transaction.names, transaction.parts)
            self._stack = stack.pop_all()

    async def next(self) -> tuple[Batch, Window]:
        """Return the next page."""
        maker, transaction = self._opened()
        if self._coming is None:
            self._coming = asyncio.ensure_future(self._fetch(self._size))
        records = await self._coming
        self._coming = None
        await transaction.learn(records)
        is_rest = self.is_at_end = len(records) < self._size
        if not is_rest:
            # The server works on the next page while this one is handled.
            self._coming = asyncio.ensure_future(self._fetch(self._size))
        return maker.make(records, is_rest=is_rest), maker.window

    def _opened(self) -> tuple[BatchMaker, LogTransaction]:
        if self._maker is None or self._transaction is None:
            raise RuntimeError("the cursor has not been opened")
        return self._maker, self._transaction

    @property
    def is_open(self) -> bool:
        """Tell whether the cursor can be read."""
        return self._maker is not None

    @property
    def is_old(self) -> bool:
        """Tell whether the transaction has been open for long."""
        return asyncio.get_running_loop().time() - self._opened_at > MAX_AGE

    async def close(self) -> None:
        """End the transaction; drop the connection if PostgreSQL does not answer."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        async with asyncio.timeout(CLOSE_TIMEOUT):
            await self._stack.aclose()


class OpenWindows:
    """The cursors of one log that wait for their next page, by the position where it begins."""

    def __init__(self) -> None:
        self._parked: OrderedDict[Key, tuple[WindowCursor, asyncio.TimerHandle]] = OrderedDict()
        self._closing: set[asyncio.Task[Any]] = set()
        self._in_use = 0

    @property
    def has_room(self) -> bool:
        """Tell whether one more cursor may be opened."""
        return self._in_use + len(self._closing) < MAX_OPEN

    def take(self, key: Key) -> WindowCursor | None:
        """Return the cursor that continues at a position; the caller parks or drops it."""
        found = self._parked.pop(key, None)
        if found is None:
            return None
        cursor, timer = found
        timer.cancel()
        self._in_use += 1
        return cursor

    def add(self) -> None:
        """Count a new cursor; if there are too many, close the one unused for longest."""
        self._in_use += 1
        if self._in_use + len(self._parked) > MAX_OPEN and self._parked:
            self._drop_parked(next(iter(self._parked)))

    def park(self, key: Key, cursor: WindowCursor) -> None:
        """Keep a cursor for the next page."""
        self._in_use -= 1
        # Another reader has left a cursor at this place: one is enough.
        if cursor.is_old or key in self._parked:
            self._close(cursor)
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(IDLE_TIMEOUT, self._drop_parked, key)
        self._parked[key] = cursor, timer

    def drop(self, cursor: WindowCursor) -> None:
        """Close a cursor that is at its end, in the background."""
        self._in_use -= 1
        self._close(cursor)

    async def discard(self, cursor: WindowCursor) -> None:
        """Close a cursor whose reader failed or was cancelled."""
        self._in_use -= 1
        task = asyncio.create_task(cursor.close())
        self._track(task)
        # An event loop that ends with the reader would not wait for a task made at its end.
        await asyncio.wait([task])

    async def aclose(self) -> None:
        """Close all cursors."""
        for key in tuple(self._parked):
            self._drop_parked(key)
        await asyncio.gather(*self._closing, return_exceptions=True)

    def _drop_parked(self, key: Key) -> None:
        cursor, timer = self._parked.pop(key)
        timer.cancel()
        self._close(cursor)

    def _close(self, cursor: WindowCursor) -> None:
        self._track(asyncio.create_task(cursor.close()))

    def _track(self, task: asyncio.Task[None]) -> None:
        self._closing.add(task)
        task.add_done_callback(self._closed)

    def _closed(self, task: asyncio.Task[Any]) -> None:
        self._closing.discard(task)
        if not task.cancelled():
            task.exception()  # the connection is closed in any case
