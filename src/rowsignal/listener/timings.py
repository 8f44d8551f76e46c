"""The intervals and timeouts of a listener."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypedDict, Unpack

from rowsignal.options import RenamedOptions


def reconnect_delays() -> Iterator[float]:
    """Yield the seconds before each attempt to reconnect: doubling to 30, with jitter."""
    ceiling = 0.05
    while True:
        yield random.uniform(ceiling / 2, ceiling)  # noqa: S311 -- spreads clients, guards nothing
        ceiling = min(ceiling * 2, 30.0)


class TimingOptions(TypedDict, total=False):
    """The keywords of `Timings`; `answer` and `linger` are the names of 0.1."""

    canary: float
    query_timeout: float
    idle_timeout: float
    full_queue: float
    delays: Callable[[], Iterator[float]]
    answer: float
    linger: float


@dataclass(frozen=True, init=False)
class Timings(RenamedOptions):
    """The intervals and timeouts of a listener, in seconds.

    `canary` is how often an idle connection proves that notifications still come through,
    `query_timeout` how long a query may take before the connection counts as dead, `idle_timeout`
    how long the connection stays after its last user has gone, `full_queue` the share of
    PostgreSQL's notification queue above which the listener polls, `delays` yields the seconds
    before each attempt to reconnect.

    >>> Timings(idle_timeout=1.0).query_timeout
    5.0
    """

    canary: float = 20.0
    query_timeout: float = 5.0
    idle_timeout: float = 5.0
    full_queue: float = 0.4
    delays: Callable[[], Iterator[float]] = reconnect_delays

    RENAMED = MappingProxyType({"answer": "query_timeout", "linger": "idle_timeout"})
    KIND = "timing"

    def __init__(self, **given: Unpack[TimingOptions]) -> None:
        super().__init__(**given)
