"""The figures of a demonstration."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rowsignal.demo.waits import INTERVAL, Outcome

RECENT = 5000


@dataclass(slots=True)
class Tally:
    """Counts outcomes; percentiles are of the last 5000."""

    outcomes: deque[Outcome] = field(default_factory=lambda: deque(maxlen=RECENT))
    count: int = 0
    notified: int = 0
    slowest: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.outcomes.append(outcome)
        self.count += 1
        self.notified += outcome.is_notified
        self.slowest = max(self.slowest, outcome.seconds)

    def percentile(self, share: float) -> float:
        """Return the percentile `share` of the latencies in seconds, 0 without waits."""
        ordered = sorted(outcome.seconds for outcome in self.outcomes)
        return ordered[min(int(len(ordered) * share), len(ordered) - 1)] if ordered else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """The final report. Latencies are in seconds, from COMMIT to the return of the wait."""

    server_version: str
    commits: int
    waits: int
    notified: int
    missed: int
    notifications: int
    p50: float
    p99: float
    slowest: float

    @property
    def is_good(self) -> bool:
        """Tell whether every change has ended its wait, and each by notification."""
        return self.waits > 0 and self.notified == self.waits and not self.missed

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        figures = {name: getattr(self, name) for name in self.__slots__}
        return {**figures, "polling_interval": INTERVAL, "is_good": self.is_good}
