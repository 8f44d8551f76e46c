"""How often tables are read, and how many notifications are too many."""

import time
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often a table is looked at, in seconds, and how busy one may be that notifies.

    `settle` and `settle_longest` bound the growing interval of looks for writers that were at work
    when the table was armed, `safety` is the interval of looks at an armed table, `recheck` that
    of asking whether a table has triggers by now. Above `busy_rate` notifying transactions a
    second a table is looked at instead, every `busy_look` seconds but at most `share_of_time` of
    the time, for `quiet` seconds at first and for `longest_stay` at most. A table that nobody
    waits for is disarmed after `linger`. `answer` is how long a query may take.
    """

    settle: float = 0.02
    settle_longest: float = 0.5
    safety: float = 30.0
    recheck: float = 5.0
    busy_rate: float = 50.0
    busy_look: float = 0.025
    share_of_time: float = 0.1
    quiet: float = 0.25
    longest_stay: float = 30.0
    linger: float = 3.0
    answer: float = 5.0


class Rate:
    """Transactions that notified, as a level that drains by `limit` a second."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self._level, self._at = 0.0, time.monotonic()

    def add(self, count: int) -> None:
        """Count transactions that notified."""
        now = time.monotonic()
        self._level = max(0.0, self._level - (now - self._at) * self._limit) + count
        self._at = now

    @property
    def is_high(self) -> bool:
        """Tell whether a second's worth has come together."""
        return self._level >= self._limit
