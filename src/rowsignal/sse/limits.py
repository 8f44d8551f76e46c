"""What one process serves at most."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process serves.

    `tick` is the shortest time between two writes to a reader, `heartbeat` the longest (seconds);
    `buffer` the bytes that may wait for one reader, `stall` the seconds that one write may take,
    `snapshot` those that one reader may take over the current rows;
    `readers` and `readers_each` count streams in all and per principal, `tracked` the rows
    remembered for a filter whose columns are not logged.
    """

    tick: float = 0.02
    heartbeat: float = 15.0
    stall: float = 30.0
    snapshot: float = 120.0
    retry: float = 2.0
    buffer: int = 256 * 1024
    readers: int = 2000
    readers_each: int = 100
    tracked: int = 100_000
