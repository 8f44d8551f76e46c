"""The changes of the last minutes, for pages that have just been opened."""

import time
from collections import Counter, deque
from collections.abc import Sequence

from rowsignal.sse.access.events import Event

SPAN = 90.0
BIN = 0.3
MARKS = 20_000

Mark = tuple[float, str, int]


class Recent:
    """Counts changes by table, operation and time slot, limited in number and age."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, str, str, int]] = deque(maxlen=MARKS)

    def note(self, events: Sequence[Event]) -> None:
        """Count changes delivered to readers."""
        at = time.time() // BIN * BIN
        counts = Counter((event.exposure.name, str(event.operation)) for event in events)
        self._marks.extend((at, name, kind, count) for (name, kind), count in counts.items())

    def by_table(self) -> dict[str, list[Mark]]:
        """Return time, operation and number of changes, by table."""
        since, found = time.time() - SPAN, dict[str, list[Mark]]()
        for at, name, kind, count in self._marks:
            if at >= since:
                found.setdefault(name, []).append((round(at, 1), kind, count))
        return found
