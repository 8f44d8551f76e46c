"""The limits of one process."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import TypedDict, Unpack

from rowsignal.options import RenamedOptions

# The names of 0.1, still accepted.
RENAMED = MappingProxyType(
    {
        "tick": "write_interval",
        "stall": "write_timeout",
        "snapshot": "snapshot_timeout",
        "buffer": "max_buffer_bytes",
        "readers": "max_streams",
        "readers_each": "max_streams_per_principal",
        "tracked": "max_tracked_rows",
    }
)


class LimitOptions(TypedDict, total=False):
    """The keywords of `Limits`."""

    write_interval: float
    heartbeat: float
    write_timeout: float
    snapshot_timeout: float
    retry: float
    max_buffer_bytes: int
    max_streams: int
    max_streams_per_principal: int
    max_tracked_rows: int
    tick: float
    stall: float
    snapshot: float
    buffer: int
    readers: int
    readers_each: int
    tracked: int


@dataclass(frozen=True, init=False)
class Limits(RenamedOptions):
    """The limits of one process.

    `write_interval` is the shortest time between two writes to a reader, `heartbeat` the longest
    (seconds); `max_buffer_bytes` may wait for one reader, one write may take `write_timeout`
    seconds, and the current rows `snapshot_timeout` seconds of one reader; `max_streams` and
    `max_streams_per_principal` count open streams (the latter in all processes that share limits);
    `max_tracked_rows` are remembered for a filter whose columns are not logged; `retry` is after
    how many seconds readers come back.

    >>> Limits(max_streams=500).max_streams
    500
    """

    write_interval: float = 0.02
    heartbeat: float = 15.0
    write_timeout: float = 30.0
    snapshot_timeout: float = 120.0
    retry: float = 2.0
    max_buffer_bytes: int = 256 * 1024
    max_streams: int = 2000
    max_streams_per_principal: int = 100
    max_tracked_rows: int = 100_000

    RENAMED = RENAMED
    KIND = "limit"

    def __init__(self, **given: Unpack[LimitOptions]) -> None:
        super().__init__(**given)
