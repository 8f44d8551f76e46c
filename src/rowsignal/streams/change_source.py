"""The interface of change sources for streams over HTTP: PostgreSQL, or a relay's stream."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.positions import decode
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import Listener
from rowsignal.postgres.json_rows import one_view
from rowsignal.streams.catalog import TableCatalog
from rowsignal.streams.feed import ChangeFeed
from rowsignal.streams.loader import Loaded
from rowsignal.streams.side_reader import SideReader
from rowsignal.streams.sources import SourceBatch, batch_of
from rowsignal.triggers.catalog import Capture

Names = Iterable[QualifiedName]
Wanted = Mapping[QualifiedName, frozenset[str]]


class Feed(Protocol):
    """The changes of some tables from now on, in order; open inside `async with`."""

    position: str | None

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @property
    def is_logged(self) -> bool:
        """Tell whether positions stand for the changes, so that reading can be resumed."""

    @property
    def is_level(self) -> bool:
        """Tell whether this feed is as far as the source."""

    @property
    def has_unread(self) -> bool:
        """Tell whether changes are there that are still to be taken."""

    @property
    def guarded(self) -> frozenset[QualifiedName]:
        """The tables of which row-level security decides which rows are seen."""

    def check(self) -> None:
        """Raise `NotWatchedError` when changes of a table are not captured."""

    async def next(self) -> SourceBatch:
        """Wait for changes; a cancellation on the way loses nothing."""

    async def load(self, batch: SourceBatch, wanted: Wanted) -> list[Loaded | Reset]:
        """Return the items of a batch with their rows."""


@dataclass(frozen=True, slots=True)
class RowsView:
    """A connection that sees the tables at one moment, and the position of that moment."""

    connection: AsyncConnection
    position: str | None = None


class ChangeSource(Protocol):
    """One for each event loop: what follows the changes, reads them again, and shows the rows.

    Without an `engine` there are only changes: no current rows, and no waiting for one.
    """

    @property
    def engine(self) -> AsyncEngine | None:
        """The engine of the database's primary."""

    @property
    def position(self) -> str | None:
        """The position up to which the source has been read; None while no stream reads it."""

    def feed(self, names: Names) -> Feed:
        """Return a feed of some tables, to be opened."""

    def check_position(self, text: str) -> None:
        """Raise `PositionError` for text that is no position."""

    async def catch_up(self) -> None:
        """Read on to a `position` that was the source's end after this call began."""

    async def read(self, after: str, until: str, tables: Sequence[QualifiedName]) -> SourceBatch:
        """Return changes of some tables between positions, as many as are good at a time.

        What was lost is a `Reset` among them. Raises `ValueError` where `until` lies before.
        """

    def rows(self, *, is_logged: bool) -> AbstractAsyncContextManager[RowsView]:
        """Open a view of the current rows; where changes are logged it has a position."""

    async def captures(self, names: Names) -> Mapping[QualifiedName, Capture]:
        """Return how tables are captured, as far as that is known here."""


class PostgresSource:
    """The change log and the notifications of one database."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine: AsyncEngine | None = engine
        self._engine = engine

    @property
    def position(self) -> str | None:
        """The position up to which the log has been read; None while no stream reads it."""
        tail = LogTail.of(self._engine)
        # The position of a tail that has stopped is of the past.
        return None if tail.mode == "stopped" else tail.position

    def feed(self, names: Names) -> Feed:
        """Return a feed of some tables, to be opened."""
        return ChangeFeed(self._engine, names)

    def check_position(self, text: str) -> None:
        """Raise `PositionError` for text that is no position."""
        decode(text)

    async def catch_up(self) -> None:
        """Read the log up to now."""
        await LogTail.of(self._engine).catch_up()

    async def read(self, after: str, until: str, tables: Sequence[QualifiedName]) -> SourceBatch:
        """Return changes of some tables from the log."""
        item = await LogTail.of(self._engine).log.read(after, until=until, tables=tables)
        is_complete = isinstance(item, Reset) or item.is_complete
        return replace(batch_of(item), is_complete=is_complete)

    @asynccontextmanager
    async def rows(self, *, is_logged: bool) -> AsyncIterator[RowsView]:
        """Open a view of the current rows."""
        if is_logged:
            async with LogTail.of(self._engine).log.snapshot() as seen:
                yield RowsView(seen.connection, seen.position)
        else:
            url = Listener.of(self._engine).read_url
            async with one_view(self._engine, url) as connection:
                yield RowsView(connection)

    async def captures(self, names: Names) -> Mapping[QualifiedName, Capture]:
        """Ask the catalogue how tables are captured."""
        async with SideReader.of(self._engine):
            states = await TableCatalog.of(self._engine).ask(names)
        return {name: state.capture for name, state in states.items()}
