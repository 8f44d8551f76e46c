"""The watch of one table: its triggers, its mode, and the hints that it can give."""

import time
from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.dispatcher.table_survey import Activity, TableSurvey
from rowsignal.hooks import Mode
from rowsignal.listener import Listener
from rowsignal.listener.hints import RelayedTable, Target, relayed_token
from rowsignal.listener.pacing import CheckResult, Pace, Pacer
from rowsignal.payload import LOG_BUCKET, Hint
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import Capture
from rowsignal.triggers.settings import TableName

LONGEST_UNREAD = 900.0  # seconds: before PostgreSQL 15 what was counted could get lost


class TableSubscribers(Protocol):
    """The waits for rows of a table and the readers of its hints."""

    @property
    def interval(self) -> float:
        """Return the shortest polling interval that a wait requested."""

    @property
    def is_streaming(self) -> bool:
        """Tell whether a stream needs each hint."""

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns (None: all) are enough for every wait."""

    async def read(self) -> bool:
        """Read every waited-for row; tell whether one had changed."""

    def mode_changed(self, mode: Mode) -> None:
        """Take note of how the table is watched from now on."""


class TableWatch:
    """The subject of a `Pacer` for one table."""

    def __init__(
        self,
        name: TableName,
        listener: Listener,
        subscribers: TableSubscribers,
        survey: TableSurvey,
        pace: Pace,
    ) -> None:
        self.name = name
        self.capture: Capture | None = None
        self._relayed: RelayedTable | None = None
        self._survey = survey
        self._activity: Activity | None = None
        self.read_at = float("-inf")
        self._listener = listener
        self._subscribers = subscribers
        self._pace = pace
        self._pacer = Pacer(listener, self, pace)

    @property
    def mode(self) -> Mode:
        """Return the mode of the table."""
        return self._pacer.mode

    @property
    def label(self) -> str:
        """Return the table's name for logs and metrics."""
        return ".".join(part for part in self.name if part)

    @property
    def interval(self) -> float:
        """Return the polling interval in seconds."""
        return self._subscribers.interval

    @property
    def is_streaming(self) -> bool:
        """Tell whether a stream needs each hint."""
        return self._subscribers.is_streaming

    @property
    def tokens(self) -> frozenset[str]:
        """Return the tokens by which hints name this table."""
        if self._relayed is not None:
            return frozenset({relayed_token(self._relayed.name)})
        channels = self.capture.channels if self.capture else ()
        return frozenset(token for token, _ in channels)

    @property
    def hinted_key(self) -> tuple[str, ...] | None:
        """Return the columns of the key that hints carry; None for a table without hints."""
        if self._relayed is not None:
            return self._relayed.key or None
        capture = self.capture
        # The log's notification names no row, so its key is of no use.
        if capture is None or capture.kind != "hint" or not capture.is_notifying:
            return None
        if not capture.has_plain_key:
            return None
        return capture.key_columns

    @property
    def is_logged(self) -> bool:
        """Tell whether changes of the table are announced by the notification of the change log."""
        if self._relayed is not None:
            return False
        return self.capture is not None and self.capture.kind == "log"

    @property
    def is_armed(self) -> bool:
        """Tell whether every change from now on is reported, or its loss is."""
        return self._pacer.is_armed

    @property
    def is_notifying(self) -> bool:
        """Tell whether writers notify; transactions that began earlier may not."""
        return self._pacer.is_notifying

    def hinted(self, hints: Iterable[Hint]) -> None:
        """Count hints that arrived for the table."""
        # A bulk statement sends many hints, and takes NOTIFY's global lock once, at its commit.
        self.woken(len({hint.transaction_id for hint in hints}))

    def woken(self, transactions: int) -> None:
        """Count transactions that notified while the table was armed."""
        self._pacer.notified(transactions)

    def wake(self) -> None:
        """Choose the mode again: the listener's state has changed."""
        self._pacer.wake()

    def wait_added(self, columns: frozenset[str] | None, *, is_hurried: bool) -> None:
        """Choose the mode again if a new wait needs more columns or a shorter interval."""
        if (is_hurried and self.mode == "polling") or not self._tells_of(columns):
            self._pacer.wake()

    async def run(self) -> None:
        """Watch the table until cancelled."""
        await self._pacer.run()

    async def targets(self) -> Sequence[Target] | None:
        """Return what makes hints arrive; None where they would not report every change."""
        surveyed = await self._survey.current(self.name)
        self.capture, self._activity = surveyed.capture, surveyed.activity
        capture = surveyed.capture
        self._relayed = None
        if self._listener.is_relayed:
            self._relayed = await self._find_relayed(capture)
            return None if self._relayed is None else [self._relayed]
        if not capture.is_notifying or not self._subscribers.is_content_with(capture.columns):
            return None
        if capture.kind == "log":
            return [LOG_BUCKET]
        return sorted({bucket for _, bucket in capture.channels})

    async def _find_relayed(self, capture: Capture) -> RelayedTable | None:
        """Return the table if a relay's messages report every change that a wait is for."""
        if capture.oid is None or capture.schema is None:
            return None
        name = capture.schema, capture.table
        source = await self._listener.relayed(name)
        if source is None or (source == "log" and not self._is_logged_for_waits(capture)):
            return None
        return RelayedTable(name, capture.key_columns if capture.has_plain_key else ())

    def _is_logged_for_waits(self, capture: Capture) -> bool:
        is_whole = capture.kind == "log" and capture.is_complete
        return is_whole and self._subscribers.is_content_with(capture.columns)

    async def check(self) -> CheckResult:
        """Tell whether triggers or partitions have changed, or rows may have been written."""
        surveyed = await self._survey.recent(self.name)
        if surveyed.capture != self.capture:
            return "altered"
        before, self._activity = self._activity, surveyed.activity
        is_counted = before is not None and time.monotonic() - self.read_at < LONGEST_UNREAD
        return "unchanged" if is_counted and before == surveyed.activity else "written"

    async def writers(self) -> frozenset[str]:
        """Return the transactions that hold a writer's lock on the table or a partition of it.

        A relay reports each of them, whenever it began.
        """
        if self._listener.is_relayed:
            return self._listener.late_writers()
        relations = list(self.capture.relations) if self.capture else []

        async def work(connection: AsyncConnection) -> frozenset[str]:
            rows = await connection.exec_driver_sql(query("writers_in_flight"), (relations,))
            return frozenset(rows.scalars())

        return await self._listener.reads.run(
            work, lane="catalogue", timeout=self._pace.query_timeout
        )

    async def read(self) -> bool:
        """Read every waited-for row; tell whether one had changed."""
        self.read_at = time.monotonic()
        return await self._subscribers.read()

    def mode_changed(self, mode: Mode) -> None:
        """Pass the mode on to the subscribers."""
        self._subscribers.mode_changed(mode)

    def _tells_of(self, columns: frozenset[str] | None) -> bool:
        told = self.capture.columns if self.capture else None
        return told is None or (columns is not None and columns <= set(told))
