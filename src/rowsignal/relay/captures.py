"""The two captures that a relay can read: the change log and the WAL."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import NoReturn, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.changes import Reset
from rowsignal.exceptions import NotWatchedError, PositionError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_rows import TableShape
from rowsignal.relay.positions import is_of_wal
from rowsignal.relay.publisher import Head
from rowsignal.relay.tables import Columns
from rowsignal.streams.change_source import Wanted
from rowsignal.streams.feed import ChangeFeed
from rowsignal.streams.loader import Loaded, TableReset
from rowsignal.streams.sources import SourceBatch

SECURED = "Row-level security decides who sees a row of {}, and cannot be asked outside PostgreSQL."
EMPTIED = (
    "The end of the stream does not say how far the relay had come: its messages were discarded or"
    " are of another program."
)
OTHER_CAPTURE = "Changes were captured in another way before: some may be missing up to here."

ReadHead = Callable[[], Awaitable[Head]]


class CaptureFeed(Protocol):
    """The changes of some tables after a position, in order."""

    @property
    def position(self) -> str | None:
        """The position up to which the feed has been read."""

    @property
    def shapes(self) -> Mapping[QualifiedName, TableShape]:
        """The tables that are there, with their columns."""

    @property
    def wants_checkpoint(self) -> bool:
        """Tell whether the position is to be stored soon, even if nothing has changed."""

    def faults(self) -> Sequence[TableReset]:
        """Return resets of the tables whose changes are not captured."""

    async def next(self) -> SourceBatch:
        """Wait for changes; a cancellation loses nothing."""

    async def load(self, batch: SourceBatch, wanted: Wanted) -> list[Loaded | Reset]:
        """Return the items of a batch with their rows."""

    def stored(self, position: str) -> None:
        """Note that the stream holds all changes up to a position."""

    async def attend(self) -> NoReturn:
        """Do what the source needs beside reading; raise what ends it."""


class RelayCapture(Protocol):
    """The capture of the changes of some tables."""

    @property
    def tables(self) -> Columns:
        """The columns that are carried by table, None for all."""

    async def open(
        self, stack: AsyncExitStack, read_head: ReadHead
    ) -> tuple[CaptureFeed, Head, str | None]:
        """Open a feed after the stream's end, and say why it cannot go on from there, if so."""


class LogFeed(ChangeFeed):
    """The changes of tables with a log."""

    wants_checkpoint = False

    def faults(self) -> Sequence[TableReset]:
        """Return resets of the tables whose triggers are missing."""
        return [
            TableReset(reason=state.fault, table=name, is_of_capture=True)
            for name, state in self.states.items()
            if state.fault is not None
        ]

    def stored(self, position: str) -> None:
        """Do nothing: the retention decides how long the log keeps changes."""

    async def attend(self) -> NoReturn:
        """Wait for ever."""
        await asyncio.Event().wait()
        raise AssertionError


class LogCapture:
    """Capture by triggers, which write the change log."""

    def __init__(self, engine: AsyncEngine, tables: Columns) -> None:
        self.tables = tables
        self._engine = engine
        self._is_first = True

    async def open(
        self, stack: AsyncExitStack, read_head: ReadHead
    ) -> tuple[CaptureFeed, Head, str | None]:
        """Follow the log from the stream's end on, or from now on where that says nothing."""
        head = await read_head()
        position, lost = head.position, None if head.position else EMPTIED
        try:
            feed = LogFeed(self._engine, self.tables, after=position)
            await stack.enter_async_context(feed)
        except PositionError:
            lost = OTHER_CAPTURE if is_of_wal(position or "") else EMPTIED
            feed = LogFeed(self._engine, self.tables)
            await stack.enter_async_context(feed)
        if self._is_first:
            self._check(feed)
        self._is_first = False
        return feed, head, lost

    @staticmethod
    def _check(feed: LogFeed) -> None:
        """Refuse to begin where changes would be missing: that is for an operator to mend."""
        feed.check()
        for state in feed.states.values():
            if state.capture.kind != "log":
                raise NotWatchedError(
                    f"{state.label} has no change log, which a relay reads:"
                    f" `rowsignal install --log {state.label}`."
                )
        check_security(feed.shapes)


def check_security(shapes: Mapping[QualifiedName, TableShape]) -> None:
    """Refuse tables whose rows are not for every reader."""
    for name, shape in shapes.items():
        if shape.has_row_security:
            raise NotWatchedError(
                f"{SECURED.format('.'.join(name))} Let the relay connect as a role with BYPASSRLS,"
                " and gateways decide by grants."
            )
