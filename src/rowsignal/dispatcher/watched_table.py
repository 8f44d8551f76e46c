"""A watched table, with those who wait for its rows and those who read its hints themselves."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from sqlalchemy import Table

from rowsignal.dispatcher.row_waits import RowWatch
from rowsignal.dispatcher.table_watch import TableWatch
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.mapping import PrimaryKey
from rowsignal.payload import Hint
from rowsignal.triggers.settings import TableName

PATIENT = 30.0  # the interval of a table that nobody waits for any more

Look = Callable[[RowWatch, Iterable[PrimaryKey]], asyncio.Future[int]]


class HintReader(Protocol):
    """Whoever reads the hints of a table themselves, such as a live stream."""

    def hinted(self, hint: Hint) -> None:
        """Take one hint; return at once."""

    def interrupted(self, reason: str) -> None:
        """Hear that hints may have been lost, and may be until `armed`."""

    def armed(self) -> None:
        """Hear that no hint of one of the tables will be lost from now on."""


class WatchedTable:
    """A table with those who wait for its rows and those who read its hints."""

    def __init__(self, name: TableName, listener: Listener, pace: Pace, look: Look) -> None:
        self.rows: dict[RowWatch, Table] = {}
        self.readers: set[HintReader] = set()
        self.watch = TableWatch(name, listener, self, pace)
        self.task: asyncio.Task[None] | None = None
        self._hooks = listener.hooks
        self._look = look
        self._was_armed = False

    @property
    def is_streaming(self) -> bool:
        """Tell whether hints are read for themselves."""
        return bool(self.readers)

    @property
    def interval(self) -> float:
        """Return the shortest polling interval that a wait asked for, in seconds."""
        return min((seconds for rows in self.rows for seconds in rows.intervals), default=PATIENT)

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns are all that anybody waits for."""
        return columns is None or all(rows.needs_only(columns) for rows in self.rows)

    async def look(self) -> bool:
        """Look at all rows that are waited for; tell whether that ended a wait."""
        ended = 0
        for rows in tuple(self.rows):
            if rows:
                ended += await self._look(rows, rows.primary_keys)
        return bool(ended)

    def mode_changed(self, mode: str) -> None:
        """Pass on how the table is watched; what is not armed may lose hints."""
        self._hooks.mode_changed(table=self.watch.label, mode=mode)
        if self._was_armed:
            self.interrupt(f"the table was disarmed for a moment, and is {mode} now")
        elif mode == "polling":
            self.interrupt("notifications do not arrive")
        self._was_armed = mode == "armed"
        self.trust()

    def interrupt(self, reason: str) -> None:
        """Tell the readers of hints that some may be missing."""
        for reader in tuple(self.readers):
            reader.interrupted(reason)

    def trust(self) -> None:
        """Tell the readers of hints where none will be missing from now on."""
        if self.watch.is_armed:
            for reader in tuple(self.readers):
                reader.armed()
