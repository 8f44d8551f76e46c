"""Groups of readers that are shown the same, and readers that are about to join one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import Event, Lens, RowKey, TableView
from rowsignal.sse.delivery.buffers import Reader

Shown = list[tuple[tuple[str, RowKey], bytes]]


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
    """Readers that are shown the same."""

    def __init__(self, key: GroupKey, exposures: Mapping[str, Exposure], tracked: int) -> None:
        self.key = key
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
            chunk = lens and lens.show(event, with_id=self.key.with_id)
            if chunk:
                shown.append(((event.exposure.name, event.row_key), chunk))
        return shown

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
