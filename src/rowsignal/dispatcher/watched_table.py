"""A watched table, with the waits for its rows and the readers of its hints."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sqlalchemy import Table

from rowsignal.dispatcher.row_waits import RowWatch
from rowsignal.dispatcher.table_watch import TableWatch
from rowsignal.hooks import Mode
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.payload import Hint
from rowsignal.triggers.settings import TableName

IDLE_INTERVAL = 30.0  # of a table without waits

Look = Callable[[RowWatch, Iterable[Any]], asyncio.Future[int]]


class HintReader(Protocol):
    """Callback interface for the hints of a table, such as a live stream. Must not block."""

    def hinted(self, hint: Hint) -> None:
        """Take one hint."""

    def interrupted(self, reason: str) -> None:
        """Take note that hints may have been lost, and may be until `armed`."""

    def armed(self) -> None:
        """Take note that no hint of one of the tables will be lost from now on."""


class WatchedTable:
    """A table with the waits for its rows and the readers of its hints."""

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
        return min(
            (seconds for rows in self.rows for seconds in rows.intervals), default=IDLE_INTERVAL
        )

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns are all that is waited for."""
        return columns is None or all(rows.needs_only(columns) for rows in self.rows)

    async def look(self) -> bool:
        """Read all rows that are waited for; tell whether that ended a wait."""
        asked = [self._look(rows, rows.row_ids) for rows in tuple(self.rows) if rows]
        return any(await asyncio.gather(*asked))

    def mode_changed(self, mode: Mode) -> None:
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
