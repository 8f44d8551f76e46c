"""Groups of readers that are shown the same, and readers that are about to join one."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from rowsignal.sse import frames
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.views import Event, Lens, RowKey, TableView, UnknownHistoryError
from rowsignal.sse.delivery.buffers import Reader

Shown = list[tuple[tuple[str, RowKey], bytes]]
Refused = Callable[["SubscriberGroup", str], None]

logger = logging.getLogger("rowsignal.sse")

UNSHOWABLE = "A row of {} could not be shown as the application wants it."


@dataclass(frozen=True, slots=True)
class GroupKey:
    """What readers must have in common to be shown the same frames.

    `with_id` says that the stream can be resumed, `known` that it is known which rows its readers
    have seen, `guarded` names the tables of which policies decide who sees a row.
    """

    views: tuple[TableView, ...]
    with_id: bool
    known: bool
    guarded: frozenset[str] = frozenset()


class SubscriberGroup:
    """Readers that are shown the same.

    A row that the types of a mapped class or its schema cannot take is passed by: they get a
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
        self.lenses = {
            view.name: Lens(
                view,
                exposures[view.name],
                known=key.known,
                tracked=tracked,
                is_guarded=view.name in key.guarded,
            )
            for view in key.views
        }

    def show(self, events: Iterable[Event]) -> Shown:
        """Return the frames of some events, each with the row that it is about."""
        shown: Shown = []
        for event in events:
            lens = self.lenses.get(event.exposure.name)
            chunk = lens and self._frame(lens, event)
            if chunk:
                shown.append(((event.exposure.name, event.row_key), chunk))
        return shown

    def snapshot(self, table: str, rows: Iterable[Row]) -> bytes:
        """Return the frames of current rows, which come into sight with that."""
        lens = self.lenses[table]
        return b"".join(self._current(lens, row) for row in rows)

    def _frame(self, lens: Lens, event: Event) -> bytes | None:
        try:
            return lens.show(event, with_id=self.key.with_id)
        except UnknownHistoryError:
            raise
        except Exception as error:  # noqa: BLE001 -- types and schemas raise what they like
            is_known, event.is_refused = event.is_refused, True
            position = event.position if self.key.with_id else None
            return self._refuse(lens, event.key, None if is_known else error, position)

    def _current(self, lens: Lens, row: Row) -> bytes:
        try:
            return lens.snapshot(row)
        except Exception as error:  # noqa: BLE001 -- as above
            return self._refuse(lens, lens.exposure.key_of(row), error)

    def _refuse(
        self, lens: Lens, key: Row | None, error: Exception | None, position: str | None = None
    ) -> bytes:
        """Return the reset for a refused row; log the first time that it is."""
        table = lens.exposure.name
        if error is not None:
            logger.error("the row %s of %s cannot be shown", key, table, exc_info=error)
        self._refused(self, table)
        row = {**lens.names, "key": None if key is None else lens.key(key)}
        return frames.passed_by(UNSHOWABLE.format(table), row, position)

    def remember(self, other: "SubscriberGroup") -> None:
        """Take over what a reader that joins has been shown on its own so far."""
        for name, lens in other.lenses.items():
            mine, theirs = self.lenses[name].seen, lens.seen
            if theirs.keys is None:
                mine.keys = None
            else:
                mine.add(theirs.keys)


@dataclass(slots=True, eq=False)
class JoiningReader:
    """A reader on its way from the log to the live changes, which are held until it is there."""

    reader: Reader
    group: SubscriberGroup
    events: list[Event] = field(default_factory=list)
