"""Registered consumers: a name, a handler, and the rules by which it gets changes."""

import random
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from json import dumps
from typing import Any, Literal

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.changes import Change, ChangeFilter
from rowsignal.exceptions import TriggerInstallError
from rowsignal.identifiers import qualify
from rowsignal.streams.tables import Columns, WatchedTables, WatchRequest

Handler = Callable[[AsyncSession, Any], Awaitable[object]]
Start = Literal["now", "beginning"]

MAX_PARTITIONS = 1000
MAX_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The rules for failed changes: number of attempts and delays in seconds.

    The delay doubles with each attempt, up to `max_delay`, and is shortened by up to a half at
    random. After `attempts` failures the change becomes a dead letter, and the next change is
    handled. An attempt that takes longer than `timeout` seconds fails.
    """

    attempts: int = 8
    delay: float = 0.25
    max_delay: float = 60.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.delay < 0 or self.max_delay < 0 or self.timeout <= 0:
            raise ValueError(
                f"{self}: attempts is at least 1, delays are not negative, timeout is above 0."
            )

    def pause(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures."""
        longest = min(self.delay * 2.0 ** min(failures - 1, 60), self.max_delay)
        return random.uniform(longest / 2, longest)  # noqa: S311 -- spreads attempts


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerReset:
    """Changes of a consumer are missing: its handler goes on from `position`.

    `reason` is a sentence for people. Each partition of the consumer gets its own reset, with its
    number as `partition` of `partitions`.
    """

    consumer: str
    partition: int
    partitions: int
    reason: str
    position: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consumer:
    """A handler with a name, and the rules by which it gets changes."""

    name: str
    models: tuple[type[Any], ...]
    handler: Handler
    filter: ChangeFilter
    columns: Columns | None = None
    partitions: int = 1
    batch: int | None = None
    start: Start = "now"
    retry: Retry = Retry()

    def __post_init__(self) -> None:
        """Check the arguments before any query."""
        if not 1 <= len(self.name) <= MAX_NAME or not self.name.isprintable():
            raise ValueError(f"{self.name!r} is no name of a consumer: 1 to {MAX_NAME} characters.")
        if not self.models:
            raise ValueError(f"Consumer {self.name!r} needs at least one model: on(Order).")
        if not 1 <= self.partitions <= MAX_PARTITIONS:
            raise ValueError(f"partitions is 1 to {MAX_PARTITIONS}, not {self.partitions}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch is a number of changes, at least 1, not {self.batch}.")
        if self.start not in ("now", "beginning"):
            raise ValueError(f'start is "now" or "beginning", not {self.start!r}.')


@dataclass(frozen=True, slots=True)
class Feed:
    """The tables of a consumer in the database, and the filter of their changes."""

    consumer: Consumer
    tables: WatchedTables

    @classmethod
    async def of(cls, engine: AsyncEngine, consumer: Consumer) -> "Feed":
        """Find the tables; raise `TriggerInstallError` for a table without a log."""
        request = WatchRequest(consumer.models, consumer.filter, consumer.columns, None)
        tables = await request.find_tables(engine)
        for name in tables.names:
            if name not in tables.logged:
                raise TriggerInstallError(
                    f"{'.'.join(name)} has no change log, so consumer {consumer.name!r} has"
                    " no position in it; install_triggers(..., log=True) makes one."
                )
        return cls(consumer, tables)

    @property
    def names(self) -> list[str]:
        """Return the tables, qualified and quoted."""
        return sorted(qualify(name, schema) for schema, name in self.tables.names)

    def wants(self, change: Change, partition: int) -> bool:
        """Tell whether a change is for this handler and this partition."""
        name = (change.schema, change.table)
        if name not in self.tables.names or not self.tables.wants(change):
            return False
        partitions = self.consumer.partitions
        return partitions == 1 or partition_of(change, partitions) == partition

    def typed(self, change: Change) -> Change:
        """Return the change with the row values that the ORM would load."""
        return self.tables.typed(change)


def partition_of(change: Change, partitions: int) -> int:
    """Return the partition of a row: always the same for the same key.

    Changes of a whole table belong to the first partition. A multiple of `partitions` splits each
    partition.

    >>> from rowsignal import Operation
    >>> change = Change(operation=Operation.INSERT, schema="public", table="t", key={"id": 42})
    >>> partition_of(change, 8) % 4 == partition_of(change, 4)
    True
    """
    if change.key is None:
        return 0
    # Stored positions depend on it: it must never change.
    text = dumps(dict(change.key), sort_keys=True, separators=(",", ":"), default=str)
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) % partitions
