"""A watched table with the waits for its rows and the readers of its hints."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from sqlalchemy import Table

from rowsignal.dispatcher.row_waits import RowWatch
from rowsignal.dispatcher.table_survey import TableSurvey
from rowsignal.dispatcher.table_watch import TableWatch
from rowsignal.hooks import Mode
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.payload import Hint
from rowsignal.triggers.settings import TableName

IDLE_INTERVAL = 30.0  # of a table without waits

ReadSoon = Callable[[RowWatch, Iterable[Any]], asyncio.Future[int]]


class HintReader(Protocol):
    """Callback interface for the hints of a table, such as a live stream. Must not block."""

    def hinted(self, hint: Hint) -> None:
        """Handle one hint."""

    def interrupted(self, reason: str) -> None:
        """Handle a gap: hints may be lost until `armed`."""

    def armed(self) -> None:
        """Handle the end of a gap: no hint of the table is lost from now on."""


class WatchedTable:
    """A table with the waits for its rows and the readers of its hints."""

    def __init__(
        self,
        name: TableName,
        listener: Listener,
        survey: TableSurvey,
        pace: Pace,
        read_soon: ReadSoon,
    ) -> None:
        self.rows: dict[RowWatch, Table] = {}
        self.readers: set[HintReader] = set()
        self.watch = TableWatch(name, listener, self, survey, pace)
        self.task: asyncio.Task[None] | None = None
        self._hooks = listener.hooks
        self._read_soon = read_soon
        self._was_armed = False

    @property
    def is_streaming(self) -> bool:
        """Tell whether a stream needs each hint."""
        return bool(self.readers)

    @property
    def interval(self) -> float:
        """Return the shortest polling interval that a wait requested, in seconds."""
        return min(
            (seconds for rows in self.rows for seconds in rows.intervals), default=IDLE_INTERVAL
        )

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns are enough for every wait."""
        return columns is None or all(rows.needs_only(columns) for rows in self.rows)

    async def read(self) -> bool:
        """Read all waited-for rows; tell whether that ended a wait."""
        asked = [self._read_soon(rows, rows.row_ids) for rows in tuple(self.rows) if rows]
        return any(await asyncio.gather(*asked))

    def mode_changed(self, mode: Mode) -> None:
        """Report the mode; readers of hints learn that hints may be lost unless it is armed."""
        self._hooks.mode_changed(table=self.watch.label, mode=mode)
        # Between two modes the table is disarmed, so writers may have sent nothing.
        if self._was_armed:
            self.interrupt(f"the table was disarmed for a moment, and is {mode} now")
        elif mode == "polling":
            self.interrupt("notifications do not arrive")
        self._was_armed = mode == "armed"
        self.trust()

    def interrupt(self, reason: str) -> None:
        """Tell the readers of hints that hints may be missing."""
        for reader in tuple(self.readers):
            reader.interrupted(reason)

    def trust(self) -> None:
        """Tell the readers of hints that no hint is lost from now on."""
        if self.watch.is_armed:
            for reader in tuple(self.readers):
                reader.armed()
