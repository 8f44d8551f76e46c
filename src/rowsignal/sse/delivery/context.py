"""The context that all feeds of an outlet share: limits, hooks and counts."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rowsignal.hooks import Hooks
from rowsignal.sse.access.events import Event
from rowsignal.sse.limits import Limits


@dataclass(slots=True)
class Counts:
    """The numbers of delivered changes since the outlet was created."""

    delivered: int = 0
    bytes: int = 0
    resets: int = 0
    overflows: int = 0
    changes: dict[str, Counter[str]] = field(default_factory=dict)
    last_change: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class DeliveryContext:
    """The limits, hooks and counts of all feeds; `flushed` is called with each write's events."""

    limits: Limits
    hooks: Hooks = field(default_factory=Hooks)
    counts: Counts = field(default_factory=Counts)
    flushed: Callable[[Sequence[Event]], None] = lambda _: None
