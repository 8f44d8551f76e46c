"""Groups of readers that get the same frames, and readers that are about to join one."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rowsignal.sse import frames
from rowsignal.sse.access.events import Event, RowKey
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.views import RowFilter, TableView, UnknownHistoryError
from rowsignal.sse.delivery.buffers import Reader

Shown = list[tuple[tuple[str, RowKey], bytes]]
Refused = Callable[["SubscriberGroup", str], None]

logger = logging.getLogger("rowsignal.sse")

UNSHOWABLE = "A row of {} could not be shown as the application wants it."


@dataclass(frozen=True, slots=True)
class GroupKey:
    """The properties that readers must share to get the same frames.

    `with_id` says that the stream can be resumed, `known` that the rows shown so far are known,
    `guarded` names the tables with row-level security.
    """

    views: tuple[TableView, ...]
    with_id: bool
    known: bool
    guarded: frozenset[str] = frozenset()


class SubscriberGroup:
    """Readers that get the same frames.

    A row that the types of a mapped class or its schema cannot take is skipped: they get a
    reset that does not end the stream, and `refused` is called with the table.
    """

    def __init__(
        self,
        key: GroupKey,
        exposures: Mapping[str, Exposure],
        tracked: int,
        refused: Refused = lambda group, table: None,  # noqa: ARG005 -- nothing to count
    ) -> None:
        self.key = key
        self._refused = refused
        self.readers: set[Reader] = set()
        self.row_filters = {
            view.name: RowFilter(
                view,
                exposures[view.name],
                known=key.known,
                tracked=tracked,
                is_guarded=view.name in key.guarded,
            )
            for view in key.views
        }

    def show(self, events: Iterable[Event]) -> Shown:
        """Return the frames of some events, each with its row."""
        shown: Shown = []
        for event in events:
            row_filter = self.row_filters.get(event.exposure.name)
            chunk = row_filter and self._frame(row_filter, event)
            if chunk:
                shown.append(((event.exposure.name, event.row_key), chunk))
        return shown

    def snapshot(self, table: str, rows: Iterable[Row]) -> bytes:
        """Return the frames of current rows, and add their keys."""
        row_filter = self.row_filters[table]
        return b"".join(self._current(row_filter, row) for row in rows)

    def _frame(self, row_filter: RowFilter, event: Event) -> bytes | None:
        try:
            return row_filter.show(event, with_id=self.key.with_id)
        except UnknownHistoryError:
            raise
        except Exception as error:  # noqa: BLE001 -- types and schemas raise what they like
            # Other groups meet the same row: one log line is enough.
            is_known, event.is_refused = event.is_refused, True
            position = event.position if self.key.with_id else None
            return self._refuse(row_filter, event.key, None if is_known else error, position)

    def _current(self, row_filter: RowFilter, row: Row) -> bytes:
        try:
            return row_filter.snapshot(row)
        except Exception as error:  # noqa: BLE001 -- as above
            return self._refuse(row_filter, row_filter.exposure.key_of(row), error)

    def _refuse(
        self,
        row_filter: RowFilter,
        key: Row | None,
        error: Exception | None,
        position: str | None = None,
    ) -> bytes:
        """Return the reset for a refused row; log the first time that it is."""
        table = row_filter.exposure.name
        if error is not None:
            logger.error("the row %s of %s cannot be shown", key, table, exc_info=error)
        self._refused(self, table)
        writer = row_filter.writer
        row = {**writer.names, "key": None if key is None else writer.key(key)}
        return frames.passed_by(UNSHOWABLE.format(table), row, position)

    def remember(self, other: "SubscriberGroup") -> None:
        """Add the rows that a joining reader was shown so far."""
        for name, row_filter in other.row_filters.items():
            mine, theirs = self.row_filters[name].seen, row_filter.seen
            # What one reader may have seen is unknown, so it is for the group.
            if theirs.keys is None:
                mine.keys = None
            else:
                mine.add(theirs.keys)


@dataclass(slots=True, eq=False)
class JoiningReader:
    """A reader that still reads the log; live changes are held back until it has caught up.

    `has_lapsed`: there were too many to hold, so it has to read them from the log.
    """

    reader: Reader
    group: SubscriberGroup
    events: list[Event] = field(default_factory=list)
    has_lapsed: bool = False
