"""Capture from the WAL: whether a relay can go on from a position, and with which slot."""

import logging
import re
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Any, Self

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.exceptions import NotWatchedError
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import sqlstate
from rowsignal.relay.captures import (
    EMPTIED,
    OTHER_CAPTURE,
    CaptureFeed,
    ReadHead,
    check_security,
)
from rowsignal.relay.positions import WalPosition, is_of_wal
from rowsignal.relay.publisher import Head
from rowsignal.relay.tables import Carried, Columns, named_columns
from rowsignal.relay.wal.catalog import (
    LOST,
    PUBLICATION,
    ask,
    published_tables,
    slot_name,
    wal_tables,
)
from rowsignal.relay.wal.connection import ReplicationConnection, SlotInUseError
from rowsignal.relay.wal.feed import WalFeed
from rowsignal.relay.wal.server import check_server, create_slot, server_facts

logger = logging.getLogger("rowsignal.relay")

QUERY_TIMEOUT = 10.0
CREATE_TIMEOUT = 600.0  # a slot begins where all transactions of before have ended
HISTORY_LINE = re.compile(r"^\s*(\d+)\s+([0-9A-F]+)/([0-9A-F]+)", re.MULTILINE)

NO_SLOT = "Changes may be missing: there was no replication slot, and a new one was made."
SLOT_LOST = (
    "Changes are missing: the server has removed WAL that was not read in time"
    " (max_slot_wal_keep_size), and the slot was made anew."
)
SLOT_AHEAD = "Changes may be missing: the replication slot begins after the end of the stream."
OTHER_SYSTEM = "Changes may be missing: this is another server than before."
OTHER_TIMELINE = (
    "Changes may be missing: the server was replaced by a standby, or restored, to a moment before"
    " the end of the stream."
)
BEHIND = "Changes may be missing: the end of the stream is ahead of the server's WAL."
IN_USE = "Another process reads the replication slot {} just now."
OTHER_SLOT = (
    "The replication slot {} is of another plugin or database: drop it, or rename that one."
)
TAKEN = frozenset({"42710", "55006"})  # duplicate object, object in use
NO_PUBLICATION = (
    "There is no publication of tables to relay in this database: `rowsignal relay install TABLE`."
)


class WalCapture:
    """Capture by a publication and a logical replication slot, without triggers."""

    def __init__(self, engine: AsyncEngine, tables: Columns, url: str | None = None) -> None:
        self.tables = tables
        self._engine = engine
        self._url = url
        self._is_first = True

    @classmethod
    async def of(cls, engine: AsyncEngine, tables: Carried, url: str | None = None) -> Self:
        """Capture the tables that are named, or all that are published."""
        if tables is not None:
            return cls(engine, named_columns(tables), url)
        async with engine.connect() as connection:
            published = await published_tables(connection)
        if not published:
            raise NotWatchedError(NO_PUBLICATION)
        return cls(engine, dict.fromkeys(published), url)

    async def open(
        self, stack: AsyncExitStack, read_head: ReadHead
    ) -> tuple[CaptureFeed, Head, str | None]:
        """Read the slot from the stream's end on; make one where none leads on from there."""
        side = SideConnection(beside(self._engine, self._url))
        stack.push_async_callback(side.close)
        server = await side.run(server_facts, timeout=QUERY_TIMEOUT)
        check_server(server)
        connection = await ReplicationConnection.open(self._url or self._engine.url)
        stack.callback(connection.close)
        slot = Slot(side, connection, server)
        head, start, lost = await slot.begin(read_head)
        tables = await side.run(partial(wal_tables, names=self.tables), timeout=QUERY_TIMEOUT)
        feed = WalFeed(connection, side, start, server["next_xid"], tables)
        await feed.begin()
        if self._is_first:
            self._check(feed)
        self._is_first = False
        await connection.start(slot.name, PUBLICATION)
        return feed, head, lost

    @staticmethod
    def _check(feed: WalFeed) -> None:
        """Refuse to begin where changes would be missing: that is for an operator to mend."""
        for fault in feed.faults():
            raise NotWatchedError(fault.reason)
        check_security(feed.shapes)


class Slot:
    """The slot of a database, and whether it leads on from the end of a stream."""

    def __init__(
        self, side: SideConnection, connection: ReplicationConnection, server: Mapping[str, Any]
    ) -> None:
        self.name = slot_name(server["database"])
        self._side = side
        self._connection = connection
        self._server = server

    async def begin(self, read_head: ReadHead) -> tuple[Head, WalPosition, str | None]:
        """Return the stream's end, the position to go on from, and why that is another one, if so.

        A position that is lost begins with a new slot, at a moment between transactions. The end
        is read after the slot: what was confirmed then lies before it.
        """
        found = await self._found()
        head = await read_head()
        system = (await self._connection.command("IDENTIFY_SYSTEM"))[0]
        here = WalPosition(int(system["systemid"]), int(system["timeline"]), 0)
        lost = await self._loss(found, head, here, parse_lsn(system["xlogpos"]))
        if lost is None and head.position is not None:
            going_on = WalPosition.parse(head.position)
            return head, replace(going_on, timeline=here.timeline), None
        if lost is not None or found is None:
            found = await self._make_anew(is_there=found is not None)
        return head, replace(here, lsn=found["confirmed"]), lost or EMPTIED

    async def _loss(
        self, found: Mapping[str, Any] | None, head: Head, here: WalPosition, end: int
    ) -> str | None:
        """Return why the slot does not lead on from the end of the stream; None if it does."""
        if found is None:
            return NO_SLOT
        if found["wal_status"] == LOST:
            return SLOT_LOST
        if head.position is None:
            return EMPTIED if head.sequence else None
        if not is_of_wal(head.position):
            return OTHER_CAPTURE
        last = WalPosition.parse(head.position)
        if last.system != here.system:
            return OTHER_SYSTEM
        if last.timeline != here.timeline and not await self._is_shared(last, here.timeline):
            return OTHER_TIMELINE
        if last.lsn > end:
            return BEHIND
        return SLOT_AHEAD if found["confirmed"] > last.lsn else None

    async def _is_shared(self, last: WalPosition, timeline: int) -> bool:
        """Tell whether a position lies where this server's WAL branched off, or before."""
        (history,) = await self._connection.command(f"TIMELINE_HISTORY {timeline}")
        ends = {
            int(number): int(high, 16) << 32 | int(low, 16)
            for number, high, low in HISTORY_LINE.findall(history["content"])
        }
        end = ends.get(last.timeline)
        return end is not None and (last.lsn, last.number) <= (end, 0)

    async def _found(self) -> Mapping[str, Any] | None:
        rows = await self._side.run(
            lambda connection: ask(connection, "wal_slot", self.name), timeout=QUERY_TIMEOUT
        )
        if not rows:
            return None
        if rows[0]["plugin"] != "pgoutput" or rows[0]["database"] != self._server["database"]:
            raise NotWatchedError(OTHER_SLOT.format(self.name))
        if rows[0]["is_active"]:
            raise SlotInUseError(IN_USE.format(self.name))
        return rows[0]

    async def _make_anew(self, *, is_there: bool) -> Mapping[str, Any]:
        logger.info("the slot %s is made anew", self.name)

        async def work(connection: AsyncConnection) -> Mapping[str, Any]:
            if is_there:
                await ask(connection, "wal_slot_drop", self.name)
            await create_slot(connection, self._server)
            (row,) = await ask(connection, "wal_slot", self.name)
            return row

        try:
            return await self._side.run(work, timeout=CREATE_TIMEOUT)
        except DBAPIError as error:
            if sqlstate(error) in TAKEN:
                raise SlotInUseError(IN_USE.format(self.name)) from error
            raise


def parse_lsn(text: str) -> int:
    """Return a place in the WAL as a number.

    >>> parse_lsn("1/A0")
    4294967456
    """
    high, low = text.split("/")
    return int(high, 16) << 32 | int(low, 16)
