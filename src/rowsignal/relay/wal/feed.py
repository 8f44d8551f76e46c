"""The feed of a relay that reads the WAL."""

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.changes import Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import SideConnection
from rowsignal.postgres.json_rows import TableShape
from rowsignal.relay.positions import WalPosition, is_of_wal
from rowsignal.relay.wal.catalog import WalTable, ask, text_readers, wal_tables
from rowsignal.relay.wal.changes import ChangeReader, Family
from rowsignal.relay.wal.connection import Keepalive, ReplicationConnection
from rowsignal.relay.wal.pgoutput import Relation, decode
from rowsignal.relay.wal.texts import TextReaders
from rowsignal.streams.change_source import Wanted
from rowsignal.streams.loader import Loaded, RowChange, TableReset
from rowsignal.streams.sources import SourceBatch

logger = logging.getLogger("rowsignal.relay")

BATCH = 500
GATHER_TIME = 0.005  # seconds before a read while transactions come faster than they are read
STATUS_INTERVAL = 1.0
CATALOG_INTERVAL = 2.0
QUERY_TIMEOUT = 10.0
MAX_UNSTORED = 16 * 2**20  # bytes of WAL that the slot keeps although nothing in them is carried
DROPPED = "A partition of {} may have been dropped while its changes were not read."


class WalFeed:
    """Changes of published tables in the order of their commits.

    The slot is confirmed up to the position of the last message that the stream has stored, and no
    further: a slot that was confirmed beyond the end of the stream is another one.
    """

    def __init__(
        self,
        connection: ReplicationConnection,
        side: SideConnection,
        start: WalPosition,
        next_xid: int,
        tables: Mapping[QualifiedName, WalTable],
    ) -> None:
        self.states = dict(tables)
        self.shapes: dict[QualifiedName, TableShape] = {}
        self._connection = connection
        self._side = side
        self._changes = ChangeReader(start, next_xid)
        self._stored = self._offered = start
        self._readers = TextReaders(())
        self._ignored = set[int]()
        self._notices = deque[TableReset]()
        self._is_asked = False
        self._is_gathering = False
        self.wants_checkpoint = False

    @property
    def position(self) -> str:
        """The position up to which the WAL has been read."""
        return str(self._changes.position)

    def faults(self) -> Sequence[TableReset]:
        """Return resets of the tables whose changes are not published."""
        return [
            TableReset(reason=it.fault, table=name, is_of_capture=True)
            for name, it in self.states.items()
            if it.fault is not None
        ]

    async def begin(self) -> None:
        """Learn the types and tables."""
        self._readers = await self._side.run(text_readers, timeout=QUERY_TIMEOUT)
        self._learn(self.states)

    async def next(self) -> SourceBatch:
        """Wait for changes; after a cancellation the feed is to be opened again."""
        while not self._notices:
            self.wants_checkpoint = self._is_checkpoint_due()
            if self.wants_checkpoint:
                self._offered = self._changes.position
                self._is_asked = self._changes.wants_checkpoint = False
                return SourceBatch((), self.position)
            if items := await self._taken(await self._receive()):
                self._offered = self._changes.told
                return SourceBatch(items, self.position)
        return SourceBatch([self._notices.popleft()], self.position)

    def _is_checkpoint_due(self) -> bool:
        """Tell whether the position is to be stored now, so that the slot can go on.

        A server that shuts down asks, and waits until what it has sent is confirmed.
        """
        distance = self._changes.position.lsn - self._offered.lsn
        is_wanted = self._is_asked or self._changes.wants_checkpoint
        return distance > (0 if is_wanted else MAX_UNSTORED)

    async def load(self, batch: SourceBatch, wanted: Wanted) -> list[Loaded | Reset]:  # noqa: ARG002 -- it has all
        """Return the items of a batch: the WAL has their rows."""
        return list(batch.items)

    def stored(self, position: str) -> None:
        """Confirm what the stream holds, with the next status."""
        if is_of_wal(position):
            self._stored = WalPosition.parse(position)

    async def attend(self) -> NoReturn:
        """Tell the server of this reader, and look at the catalogue, again and again."""
        loop = asyncio.get_running_loop()
        read_at = loop.time()
        while True:
            await self._connection.send_status(self._stored.lsn)
            await asyncio.sleep(STATUS_INTERVAL)
            if loop.time() - read_at >= CATALOG_INTERVAL:
                await self._refresh()
                read_at = loop.time()

    async def _receive(self) -> Sequence[bytes | Keepalive]:
        """Wait for messages; after a read of several transactions let more gather first.

        A read, and what it leads to on the way to NATS, costs as much as some changes do.
        """
        if self._is_gathering:
            await asyncio.sleep(GATHER_TIME)
        return await self._connection.receive(BATCH)

    async def _taken(self, received: Sequence[bytes | Keepalive]) -> list[RowChange | Reset]:
        """Return the changes that some messages tell."""
        found: list[RowChange | Reset] = []
        commits = self._changes.commits
        for it in received:
            if isinstance(it, Keepalive):
                await self._answer(it)
                continue
            message = decode(it)
            found += self._changes.read(message)
            if isinstance(message, Relation):
                found += await self._met(message)
        self._is_gathering = self._changes.commits - commits > 1 and len(received) < BATCH
        return [it for it in found if not isinstance(it, RowChange) or it.table in self.shapes]

    async def _answer(self, keepalive: Keepalive) -> None:
        self._changes.reached(keepalive.end)
        if keepalive.wants_reply:
            self._is_asked = True
            await self._connection.send_status(self._stored.lsn)

    async def _met(self, relation: Relation) -> Sequence[TableReset]:
        """Look up a relation that the catalogue had not, or had otherwise, when it was read."""
        if self._fits(relation):
            return ()
        self._readers = await self._side.run(text_readers, timeout=QUERY_TIMEOUT)
        await self._refresh()
        if self._changes.knows(relation):
            return ()
        self._ignored.add(relation.oid)
        if await self._side.run(partial(_is_there, oid=relation.oid), timeout=QUERY_TIMEOUT):
            return ()
        place = self.position
        return [
            TableReset(reason=DROPPED.format(it.label), position=place, table=it.name)
            for it in self.states.values()
            if it.is_partitioned
        ]

    def _fits(self, relation: Relation) -> bool:
        if relation.oid in self._ignored:
            return True
        if not self._changes.knows(relation):
            return False
        table = self._changes.table_of(relation)
        names = {column.name for column in relation.columns}
        return table in self.shapes and names == set(self.shapes[table].columns)

    async def _refresh(self) -> None:
        """Read the catalogue; tell what has changed as far as it concerns readers."""
        work = partial(wal_tables, names=list(self.states))
        fresh = await self._side.run(work, timeout=QUERY_TIMEOUT)
        reasons = {name: self.states[name].difference(it) for name, it in fresh.items()}
        self._learn(fresh)
        for name, reason in reasons.items():
            if reason is not None:
                self._notices.append(TableReset(reason=reason, table=name, is_of_capture=True))
                self._connection.interrupt()

    def _learn(self, fresh: Mapping[QualifiedName, WalTable]) -> None:
        self.states |= fresh
        families: dict[int, Family] = {}
        for name, it in self.states.items():
            if it.shape is None or it.oid is None:
                self.shapes.pop(name, None)
                continue
            self.shapes[name] = it.shape
            members = frozenset(member.oid for member in it.members)
            key = tuple(part.name for part in it.shape.key)
            family = Family(name, it.oid, members, key)
            families |= dict.fromkeys(members | {it.oid}, family)
        self._changes.learn(families, self._readers)


async def _is_there(connection: AsyncConnection, *, oid: int) -> bool:
    (row,) = await ask(connection, "wal_is_there", oid)
    return bool(row["exists"])
