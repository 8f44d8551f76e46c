"""One watched table: which of its changes are told, and how they come."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.hooks import Mode
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace, Pacer
from rowsignal.payload import LOG_BUCKET, Hint
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import Capture, captures
from rowsignal.triggers.settings import TableName


class Audience(Protocol):
    """The waits for rows of the table, and the readers of its hints."""

    @property
    def interval(self) -> float:
        """Return the shortest interval between reads that one of them asked for."""

    @property
    def is_streaming(self) -> bool:
        """Tell whether the notifications themselves are read, so that all are needed."""

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns (None: all) are all that is waited for."""

    async def look(self) -> bool:
        """Read every waited-for row; tell whether one had changed."""

    def mode_changed(self, mode: Mode) -> None:
        """Take note of how the table is watched from now on."""


class TableWatch:
    """What a `Pacer` needs to know of one table, and what its mode means for hints."""

    def __init__(self, name: TableName, listener: Listener, audience: Audience, pace: Pace) -> None:
        self.name = name
        self.capture: Capture | None = None
        self._listener = listener
        self._audience = audience
        self._pace = pace
        self._pacer = Pacer(listener, self, pace)

    @property
    def mode(self) -> Mode:
        """Return how the table is watched."""
        return self._pacer.mode

    @property
    def label(self) -> str:
        """Return the table's name for people and metrics."""
        return ".".join(part for part in self.name if part)

    @property
    def interval(self) -> float:
        """Return the seconds between reads while hints do not come."""
        return self._audience.interval

    @property
    def is_streaming(self) -> bool:
        """Tell whether hints are read for themselves."""
        return self._audience.is_streaming

    @property
    def tokens(self) -> frozenset[str]:
        """Return what marks the hints of this table."""
        channels = self.capture.channels if self.capture else ()
        return frozenset(token for token, _ in channels)

    @property
    def hinted_key(self) -> tuple[str, ...] | None:
        """Return the columns of the key that hints carry; None where there are no hints."""
        capture = self.capture
        if capture is None or capture.kind != "hint" or not capture.is_notifying:
            return None
        if not capture.has_plain_key:
            return None
        return capture.key_columns

    @property
    def is_logged(self) -> bool:
        """Tell whether the table's changes are told by the wake-up of the change log."""
        return self.capture is not None and self.capture.kind == "log"

    @property
    def is_armed(self) -> bool:
        """Tell whether every change from now on will be told, or that it was not."""
        return self._pacer.is_armed

    @property
    def is_notifying(self) -> bool:
        """Tell whether writers notify, if not yet all earlier ones."""
        return self._pacer.is_notifying

    def hinted(self, hints: Iterable[Hint]) -> None:
        """Count hints that arrived for the table."""
        self.woken(len({hint.transaction_id for hint in hints}))

    def woken(self, transactions: int) -> None:
        """Count transactions that notified because the table was armed."""
        self._pacer.notified(transactions)

    def wake(self) -> None:
        """Decide again how to watch: the listener's state has changed."""
        self._pacer.wake()

    def joined(self, columns: frozenset[str] | None, *, is_hurried: bool) -> None:
        """Take notice of a new wait for some columns, perhaps with the shortest interval."""
        if (is_hurried and self.mode == "polling") or not self._tells_of(columns):
            self._pacer.wake()

    async def run(self) -> None:
        """Keep the audience informed until cancelled."""
        await self._pacer.run()

    async def buckets(self) -> Sequence[int] | None:
        """Ask the catalogue which buckets make the triggers notify; None where they do not."""
        self.capture = capture = await self._ask_catalogue()
        if not capture.is_notifying or not self._audience.is_content_with(capture.columns):
            return None
        if capture.kind == "log":
            return [LOG_BUCKET]
        return sorted({bucket for _, bucket in capture.channels})

    async def has_altered(self) -> bool:
        """Tell whether the triggers, or the tables beneath, are not what they were."""
        return await self._ask_catalogue() != self.capture

    async def writers(self) -> frozenset[str]:
        """Return the transactions that hold a writer's lock on the table or one beneath it."""
        relations = list(self.capture.relations) if self.capture else []

        async def work(connection: AsyncConnection) -> frozenset[str]:
            rows = await connection.exec_driver_sql(query("writers_in_flight"), (relations,))
            return frozenset(rows.scalars())

        return await self._listener.reads.run(work, lane="catalogue", timeout=self._pace.answer)

    async def read(self) -> bool:
        """Read every waited-for row; tell whether one had changed."""
        return await self._audience.look()

    def mode_changed(self, mode: Mode) -> None:
        """Pass on the mode."""
        self._audience.mode_changed(mode)

    def _tells_of(self, columns: frozenset[str] | None) -> bool:
        told = self.capture.columns if self.capture else None
        return told is None or (columns is not None and columns <= set(told))

    async def _ask_catalogue(self) -> Capture:
        work = partial(captures, tables=[self.name])
        (found,) = await self._listener.reads.run(work, lane="catalogue", timeout=self._pace.answer)
        return found
