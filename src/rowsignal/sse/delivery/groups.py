"""Groups of readers that get the same frames, and readers that are about to join one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import Event, RowFilter, RowKey, TableView
from rowsignal.sse.delivery.buffers import Reader

Shown = list[tuple[tuple[str, RowKey], bytes]]


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
    """Readers that get the same frames."""

    def __init__(self, key: GroupKey, exposures: Mapping[str, Exposure], tracked: int) -> None:
        self.key = key
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
            chunk = row_filter and row_filter.show(event, with_id=self.key.with_id)
            if chunk:
                shown.append(((event.exposure.name, event.row_key), chunk))
        return shown

    def remember(self, other: "SubscriberGroup") -> None:
        """Add the rows that a joining reader was shown so far."""
        for name, row_filter in other.row_filters.items():
            mine, theirs = self.row_filters[name].seen, row_filter.seen
            if theirs.keys is None:
                mine.keys = None
            else:
                mine.add(theirs.keys)


@dataclass(slots=True, eq=False)
class JoiningReader:
    """A reader that still reads the log; live changes are held back until it has caught up."""

    reader: Reader
    group: SubscriberGroup
    events: list[Event] = field(default_factory=list)
