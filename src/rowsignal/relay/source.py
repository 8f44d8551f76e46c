"""`JetStreamSource`: the changes of a database as a relay has put them into NATS."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from nats.aio.client import Client
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import ChangeLog
from rowsignal.change_log.positions import Position, Snapshot
from rowsignal.change_log.positions import decode as decode_position
from rowsignal.changes import Reset
from rowsignal.exceptions import UnsupportedError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_rows import one_view
from rowsignal.postgres.parameters import run_query
from rowsignal.postgres.statements import query
from rowsignal.relay.messages import Checkpoint, Item
from rowsignal.relay.places import Place, is_place
from rowsignal.relay.positions import is_of_wal, passes
from rowsignal.relay.stream_tail import AHEAD, REPLACED, Entry, StreamTail
from rowsignal.streams.change_source import Feed, Names, RowsView, Wanted
from rowsignal.streams.loader import Loaded, RowChange, TableReset
from rowsignal.streams.sources import SourceBatch
from rowsignal.triggers.catalog import Capture

LIMIT = 10_000
EMPTY_PACE = 1.0
MOVE_TIMEOUT = 1.0
OF_THE_LOG = "The position is of the change log itself: begin again with a snapshot."
NOT_CARRIED = (
    "The relay does not carry {} of {}: name it there, or offer less here. A large value that was"
    " not touched is in the WAL only where the replica identity is full."
)


class JetStreamFeed:
    """The changes of some tables, as the tail of the stream reads them."""

    is_logged = True
    is_level = True
    guarded: frozenset[QualifiedName] = frozenset()

    def __init__(self, tail: StreamTail, names: Names) -> None:
        self.position: str | None = None
        self._tail = tail
        self._names = frozenset(names)
        self._items: deque[RowChange | Reset] = deque()
        self._latest = ""
        self._told_at = 0.0
        self._arrived = asyncio.Event()
        self._taken = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self._tail.attach(self)
        self.position = self._latest = str(self._tail.place)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._tail.detach(self)

    @property
    def has_unread(self) -> bool:
        """Tell whether changes are there that are still to be taken."""
        return bool(self._items)

    @property
    def is_full(self) -> bool:
        """Tell whether it has as much to do as it can hold."""
        return len(self._items) >= LIMIT

    def check(self) -> None:
        """Do nothing: that triggers are missing is told by the relay, as a reset."""

    def push(self, item: Item, position: str) -> None:
        """Take a message of the stream."""
        self._latest = position
        now = asyncio.get_running_loop().time()
        if not isinstance(item, Checkpoint) and concerns(item, self._names):
            self._items.append(item)
            self._arrived.set()
        elif now - self._told_at >= EMPTY_PACE:
            self._told_at = now
            self._arrived.set()

    async def room(self) -> None:
        """Wait until it is no longer full."""
        self._taken.clear()
        await self._taken.wait()

    async def next(self) -> SourceBatch:
        """Wait for changes; a cancellation on the way loses nothing."""
        await self._arrived.wait()
        self._arrived.clear()
        self.position = self._latest
        items = tuple(self._items)
        self._items.clear()
        self._taken.set()
        return SourceBatch(items, self.position)

    async def load(self, batch: SourceBatch, wanted: Wanted) -> list[Loaded | Reset]:
        """Return the items of a batch, whose rows are there already."""
        return [_complete(item, wanted) for item in batch.items]


def concerns(item: RowChange | Reset, names: frozenset[QualifiedName]) -> bool:
    """Tell whether a message is about one of some tables, or about all."""
    return not isinstance(item, RowChange | TableReset) or item.table in names


def _complete(item: RowChange | Reset, wanted: Wanted) -> Loaded | Reset:
    """Return an item; a reset where the message lacks values that are to be shown."""
    if not isinstance(item, RowChange):
        return item
    if item.row is None or item.row.keys() >= wanted.get(item.table, frozenset()):
        return item
    missing = sorted(wanted[item.table].difference(item.row))
    reason = NOT_CARRIED.format(", ".join(missing), ".".join(item.table))
    return TableReset(reason=reason, position=item.change.position, table=item.table)


class JetStreamSource:
    """Reads the changes of one database from NATS, without a connection to it.

        source = JetStreamSource("nats://localhost:4222", "shop")
        app.include_router(create_sse_router(source=source, tables={Order: OrderOut}))

    `nats` is a URL, several with commas between them, or a connected client; `database` is the
    name of the database that a `Relay` carries. With an `engine` of its primary, streams can begin
    with the current rows, and rows be waited for; it is used for nothing else.
    """

    def __init__(
        self, nats: str | Client, database: str, *, engine: AsyncEngine | None = None
    ) -> None:
        self.engine = engine
        self._tail = StreamTail(nats, database)
        self._log: ChangeLog | None = None

    @property
    def position(self) -> str | None:
        """The position up to which the stream has been read; None while it is not read."""
        return str(self._tail.place) if self._tail.is_open else None

    @property
    def sequence(self) -> int | None:
        """The sequence of the last message that was read; None while nothing reads."""
        return self._tail.place.sequence if self._tail.is_open else None

    def feed(self, names: Names) -> Feed:
        """Return a feed of some tables, to be opened."""
        return JetStreamFeed(self._tail, names)

    def check_position(self, text: str) -> None:
        """Raise `PositionError` for text that is neither a place here nor a position of the log."""
        if is_place(text):
            Place.parse(text)
        else:
            decode_position(text)

    async def catch_up(self) -> None:
        """Read on to what was the stream's end after this call began."""
        await self._tail.catch_up()

    async def read(self, after: str, until: str, tables: Sequence[QualifiedName]) -> SourceBatch:
        """Return changes of some tables between places, as many as are good at a time."""
        if not is_place(after):
            return _gap(OF_THE_LOG)
        start, end = Place.parse(after), Place.parse(until)
        if start.incarnation != end.incarnation:
            return _gap(REPLACED)
        if start.sequence > end.sequence:
            return _gap(AHEAD)
        entries = await self._tail.read(start.sequence, end.sequence)
        if isinstance(entries, Reset):
            return _gap(entries.reason)
        reached = start.at(entries[-1].sequence if entries else start.sequence)
        if start.seen is None:
            items = [entry.item for entry in entries]
        else:
            items, is_over = _unseen(start, entries)
            if is_over:
                reached = reached.whole()
        is_complete = reached.sequence == end.sequence
        if is_complete and reached.seen is not None:
            reached = await self._settled(reached, tables)
            is_complete = reached.seen is None
        names = frozenset(tables)
        told = [it for it in items if not isinstance(it, Checkpoint) and concerns(it, names)]
        return SourceBatch(told, str(reached), is_complete=is_complete)

    @asynccontextmanager
    async def rows(self, *, is_logged: bool) -> AsyncIterator[RowsView]:  # noqa: ARG002 -- it is
        """Open a view of the current rows; it leaves out what it saw of the messages to come."""
        engine, log = self._primary()
        await self._tail.catch_up()
        place, position = self._tail.place, self._tail.log_position
        if is_of_wal(position):
            async with one_view(engine) as connection:
                (row,) = (await run_query(connection, query("wal_snapshot"))).mappings()
                # The relay stores a checkpoint once it has come to this message.
                await run_query(connection, query("wal_emit"))
                seen = Snapshot.parse(row["seen"])
                yield RowsView(connection, str(replace(place, seen=seen, seen_lsn=row["lsn"])))
            return
        async with log.snapshot() as view:
            found = await view.connection.scalar(
                text("SELECT pg_catalog.pg_current_snapshot()::pg_catalog.text")
            )
            seen = Snapshot.parse(str(found))
            yield RowsView(view.connection, str(replace(place, seen=seen)))

    async def captures(self, names: Iterable[QualifiedName]) -> Mapping[QualifiedName, Capture]:  # noqa: ARG002
        """Return nothing: how tables are captured is known to the relay."""
        return {}

    async def aclose(self) -> None:
        """Close the connections for current rows."""
        if self._log is not None:
            await self._log.aclose()

    def _primary(self) -> tuple[AsyncEngine, ChangeLog]:
        if self.engine is None:
            raise UnsupportedError("This source has no database to read current rows from.")
        if self._log is None:
            self._log = ChangeLog(self.engine)
        return self.engine, self._log

    async def _settled(self, reached: Place, tables: Sequence[QualifiedName]) -> Place:
        """Return a place without its snapshot once the relay has passed that; else wait a little.

        Where nothing more was logged before the snapshot, no message will say that it is passed.
        """
        # The tail may be ahead of this reader, which has yet to leave out what lies between.
        if self._tail.place.sequence != reached.sequence:
            return reached
        if await self._is_passed(reached, self._tail.log_position, tables):
            return reached.whole()
        try:
            async with asyncio.timeout(MOVE_TIMEOUT):
                await self._tail.moved()
        except TimeoutError:
            return reached
        return reached

    async def _is_passed(
        self, place: Place, position: str, tables: Sequence[QualifiedName]
    ) -> bool:
        seen = place.seen
        if seen is None or (position and passes(position, seen, place.seen_lsn)):
            return True
        if not position or is_of_wal(position):
            return False
        log = decode_position(position)
        end = Position(log.incarnation, seen).encode()
        try:
            between = await self._primary()[1].read(position, until=end, tables=tables, limit=1)
        except ValueError:  # the relay is amid a window that ends after the snapshot
            return False
        return not isinstance(between, Reset) and not between.changes


def _gap(reason: str) -> SourceBatch:
    return SourceBatch([Reset(reason=reason)])


def _unseen(start: Place, entries: Sequence[Entry]) -> tuple[list[Item], bool]:
    """Leave out the changes that a snapshot saw; tell whether all of them are passed."""
    items: list[Item] = []
    seen = start.seen
    for entry in entries:
        item = entry.item
        is_known = seen is not None and _was_seen(item, seen)
        if seen is not None and passes(entry.position, seen, start.seen_lsn):
            seen = None  # from the next one on: the last of a window has the position of its end
        if is_known:
            continue
        if seen is not None and isinstance(item, RowChange):
            place = str(replace(start, sequence=entry.sequence))
            item = replace(item, change=replace(item.change, position=place))
        items.append(item)
    return items, seen is None


def _was_seen(item: Item, seen: Snapshot) -> bool:
    xid = item.change.transaction_id if isinstance(item, RowChange) else None
    return xid is not None and seen.sees(xid)
