"""Events: changes with the values that decide which readers get them."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from rowsignal.changes import Operation
from rowsignal.sse.access.exposures import Exposure, Kept, Row

RowKey = tuple[Any, ...]


@dataclass(slots=True, eq=False)
class Event:
    """One change with the values that views decide on.

    `new` is the present row, None if there is none; `old` holds the values before the change, None
    if the log does not have them. `frames` caches encoded frames, `kept_new` and `kept_old`
    converted values, for all readers. `is_refused` is set when types or schema refused the row.
    """

    operation: Operation
    exposure: Exposure
    key: Row | None
    changed: tuple[str, ...] | None = None
    new: Row | None = None
    old: Row | None = None
    position: str | None = None
    transaction_id: int | None = None
    captured_at: datetime | None = None
    frames: dict[object, bytes] = field(default_factory=dict)
    kept_new: Kept = field(default_factory=dict)
    kept_old: Kept = field(default_factory=dict)
    is_refused: bool = False

    @property
    def row_key(self) -> RowKey:
        """The key's values, as a lookup key."""
        return () if self.key is None else tuple(self.key.values())
