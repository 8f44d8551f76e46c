"""The figures of a process's streams for its status, whatever the source of changes."""

import os
import time
from collections import Counter, deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rowsignal.service.recent import Recent
from rowsignal.sse import Grant, Outlet, TableGrant
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.grants import EVERY_TABLE

WINDOW = 30.0
SAMPLES = 5000
SAMPLES_A_FLUSH = 50
OPERATIONS = ("insert", "update", "delete", "truncate")

# Counts of all rows would reveal rows that a grant's conditions hide.
UNTOLD: dict[str, Any] = {"estimated_rows": None, "changes": {}, "last_change_at": None}


class Latency:
    """The delivery latency of recent changes: seconds from capture to delivery."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)

    def note(self, events: Sequence[Event]) -> None:
        """Add events that are being delivered."""
        now = time.time()
        for event in events[:SAMPLES_A_FLUSH]:
            if event.captured_at is not None:
                self._samples.append((now, max(now - event.captured_at.timestamp(), 0.0)))

    def summary(self) -> dict[str, float | int] | None:
        """Return median and 99th percentile; None without events."""
        since = time.time() - WINDOW
        recent = sorted(seconds for at, seconds in self._samples if at >= since)
        if not recent:
            return None
        p50, p99 = (recent[int(len(recent) * share)] for share in (0.5, 0.99))
        return {"p50": p50, "p99": p99, "count": len(recent)}


class Figures:
    """Counts what an outlet delivers, and says how its streams are."""

    def __init__(self, outlet: Outlet, *, has_tokens: bool) -> None:
        self.started_at = datetime.now(UTC)
        self.latency = Latency()
        self.recent = Recent()
        self._outlet = outlet
        self._has_tokens = has_tokens

    def delivered(self, events: Sequence[Event]) -> None:
        """Take in events that are on their way to readers."""
        self.latency.note(events)
        self.recent.note(events)

    def state(self, reason: str | None, *, has_asked: bool) -> str:
        """Return the state of a process that may not be ready for a reason."""
        if self._outlet.fanout.is_closing:
            return "stopping"
        if not has_asked:
            return "starting"
        return "ready" if reason is None else "degraded"

    def report(self, version: str, grant: Grant, reason: str | None) -> dict[str, Any]:
        """Return the part of a status that is about this process and its readers."""
        recent = self.recent.by_table()
        return {
            "version": version,
            "pid": os.getpid(),
            "now": datetime.now(UTC).isoformat(),
            "started_at": self.started_at.isoformat(),
            "ready": reason is None,
            "reason": reason,
            "auth": self._has_tokens,
            "every_table": EVERY_TABLE in grant.tables,
            "latency": self.latency.summary(),
            "readers": self._readers(),
            "recent": {
                it.name: recent[it.name]
                for it, held in self.granted(grant)
                if not held.where and it.name in recent
            },
        }

    def granted(self, grant: Grant) -> list[tuple[Exposure, TableGrant]]:
        """Return the offered tables that a grant names, with what it says of them."""
        tables = [(it, grant.for_table(it.name)) for it in self._outlet.exposures.values()]
        return [(it, held) for it, held in tables if held is not None]

    def table(self, exposure: Exposure, held: TableGrant, rows: int | None) -> dict[str, Any]:
        """Return what a grant may know of a table; `rows` is an estimate of their number."""
        schema, table = exposure.full_name
        shown = [it for it in exposure.fields if held.columns is None or it in held.columns]
        return {
            "schema": schema,
            "table": table,
            "name": exposure.name,
            "key": [column for column in exposure.key if column in shown],
            "columns": {column: str(exposure.table.c[column].type).lower() for column in shown},
            "readers": self._outlet.fanout.readers_of(exposure.name),
            **(UNTOLD if held.where else self._activity(exposure.name, rows)),
        }

    def _readers(self) -> dict[str, Any]:
        fanout = self._outlet.fanout
        counts = fanout.counts
        return {
            "now": fanout.readers,
            "limit": fanout.limits.max_streams,
            "resets": counts.resets,
            "overflows": counts.overflows,
            "delivered": counts.delivered,
            "bytes": counts.bytes,
        }

    def _activity(self, name: str, rows: int | None) -> dict[str, Any]:
        counts = self._outlet.fanout.counts
        changes, last = counts.changes.get(name, Counter()), counts.last_change.get(name)
        return {
            "estimated_rows": rows,
            "changes": {operation: changes[operation] for operation in OPERATIONS},
            "last_change_at": last and datetime.fromtimestamp(last, UTC).isoformat(),
        }
