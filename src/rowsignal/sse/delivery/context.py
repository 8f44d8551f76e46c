"""What all feeds of an outlet share: limits, hooks, and the counts of what was delivered."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rowsignal.hooks import Hooks
from rowsignal.sse.access.views import Event
from rowsignal.sse.limits import Limits


@dataclass(slots=True)
class Counts:
    """What was delivered since the outlet was made."""

    delivered: int = 0
    bytes: int = 0
    resets: int = 0
    overflows: int = 0
    changes: dict[str, Counter[str]] = field(default_factory=dict)
    last_change: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class DeliveryContext:
    """What all feeds share; `flushed` is called with the events of each write."""

    limits: Limits
    hooks: Hooks = field(default_factory=Hooks)
    counts: Counts = field(default_factory=Counts)
    flushed: Callable[[Sequence[Event]], None] = lambda _: None
