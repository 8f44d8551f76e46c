"""The status of the service, for people, the page, and monitoring."""

import os
import re
import shlex
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.listener import Listener
from rowsignal.service.probe import Probe
from rowsignal.service.recent import Recent
from rowsignal.sse import Grant, Outlet, TableGrant
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.grants import EVERY_TABLE
from rowsignal.sse.access.views import Event
from rowsignal.triggers import TableStatus

WINDOW = 30.0
SAMPLES = 5000
SAMPLES_A_FLUSH = 50
STATUS_TIMEOUT = 2.0
INTERNAL = re.compile(
    r"sqlalchemy|asyncpg|<class|Traceback|0x[0-9a-f]{6}|\[Errno|Connect call failed"
)


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


class StatusReport:
    """Builds the status from the state of the probe, the listener and the fan-out."""

    def __init__(
        self, engine: AsyncEngine, outlet: Outlet, probe: Probe, *, has_tokens: bool
    ) -> None:
        self._has_tokens = has_tokens
        self._engine = engine
        self._outlet = outlet
        self._probe = probe
        self._started_at = datetime.now(UTC)
        self._state: tuple[str, datetime] = ("stopped", self._started_at)
        self.latency = Latency()
        self.recent = Recent()

    def readiness(self) -> str | None:
        """Return why the service is not ready, or None; never waits."""
        return "stopping" if self._outlet.fanout.is_closing else self._probe.problem

    async def report(self, version: str, grant: Grant) -> dict[str, Any]:
        """Return the status as a JSON object, with the tables that a grant names."""
        facts = await self._probe.refreshed(STATUS_TIMEOUT)
        reason = self.readiness()
        fanout = self._outlet.fanout
        counts = fanout.counts
        tables = [(it, grant.for_table(it.name)) for it in self._outlet.exposures.values()]
        recent = self.recent.by_table()
        return {
            "version": version,
            "pid": os.getpid(),
            "now": datetime.now(UTC).isoformat(),
            "started_at": self._started_at.isoformat(),
            "ready": reason is None,
            "reason": reason,
            "state": self._service_state(reason),
            "auth": self._has_tokens,
            "every_table": EVERY_TABLE in grant.tables,
            "database": facts.get("database"),
            "listener": self._listener(facts),
            "log": self._log(facts),
            "latency": self.latency.summary(),
            "readers": {
                "now": fanout.readers,
                "limit": fanout.limits.max_streams,
                "resets": counts.resets,
                "overflows": counts.overflows,
                "delivered": counts.delivered,
                "bytes": counts.bytes,
            },
            "tables": [self._table(it, held, facts) for it, held in tables if held is not None],
            "recent": {
                it.name: recent[it.name]
                for it, held in tables
                if held is not None and not held.where and it.name in recent
            },
            "candidates": facts.get("candidates", []) if EVERY_TABLE in grant.tables else [],
        }

    def tables(self) -> list[dict[str, Any]]:
        """Return how all offered tables are, as far as is known."""
        facts, whole = self._probe.facts, TableGrant()
        return [self._table(it, whole, facts) for it in self._outlet.exposures.values()]

    def _service_state(self, reason: str | None) -> str:
        if self._outlet.fanout.is_closing:
            return "stopping"
        if not self._probe.has_asked:
            return "starting"
        return "ready" if reason is None else "degraded"

    def _listener(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        state = Listener.of(self._engine).state
        mode = "reconnecting" if state.mode == "polling" and state.epoch else state.mode
        if mode != self._state[0]:
            self._state = mode, datetime.now(UTC)
        return {
            "state": mode,
            "reason": plain_reason(state.reason),
            "since": self._state[1].isoformat(),
            "reconnects": max(state.epoch - 1, 0),
            "notifications": state.notifications,
            "queue_usage": facts.get("queue_usage"),
            "lag": self._probe.lag.seconds,
        }

    def _log(self, facts: Mapping[str, Any]) -> dict[str, Any] | None:
        found = facts.get("log")
        if found is None:
            return None
        return {**found, "position": self._outlet.sources.position}

    def _table(
        self, exposure: Exposure, held: TableGrant, facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        name = exposure.name
        capture = self._outlet.sources.captures.get(name)
        kind = "unknown" if capture is None else capture.kind or "none"
        schema, table = exposure.full_name
        shown = [it for it in exposure.fields if held.columns is None or it in held.columns]
        return {
            "schema": schema,
            "table": table,
            "name": name,
            "capture": kind,
            **_trigger(name, kind, facts.get("triggers")),
            "key": [column for column in exposure.key if column in shown],
            "columns": {column: str(exposure.table.c[column].type).lower() for column in shown},
            "readers": self._outlet.fanout.readers_of(name),
            **(UNTOLD if held.where else self._activity(name, facts)),
        }

    def _activity(self, name: str, facts: Mapping[str, Any]) -> dict[str, Any]:
        counts = self._outlet.fanout.counts
        changes, last = counts.changes.get(name, Counter()), counts.last_change.get(name)
        return {
            "estimated_rows": facts.get("rows", {}).get(name),
            "changes": {
                operation: changes[operation]
                for operation in ("insert", "update", "delete", "truncate")
            },
            "last_change_at": last and datetime.fromtimestamp(last, UTC).isoformat(),
        }


# Counts of all rows would reveal rows that a grant's conditions hide.
UNTOLD: dict[str, Any] = {"estimated_rows": None, "changes": {}, "last_change_at": None}


def _trigger(
    name: str, kind: str, triggers: Mapping[str, TableStatus] | None
) -> dict[str, str | None]:
    """Return the state of the triggers: unknown, not missing, if it could not be read."""
    if triggers is None or kind == "unknown":
        return {"trigger": "unknown", "problem": None, "fix": None, "mend": None}
    found = triggers.get(name)
    if found is not None and kind != "none":
        state, problem = str(found.state), found.problem
    else:
        state, problem = "missing", f"{name} has no triggers: no change of it is told."
    if state == "installed":
        return {"trigger": state, "problem": None, "fix": None, "mend": None}
    fix = f"rowsignal install {shlex.quote(name)}" + (" --hints" if kind == "hint" else " --log")
    return {"trigger": state, "problem": problem, "fix": fix, "mend": fix}  # mend: its name in 0.1


def plain_reason(reason: str | None) -> str | None:
    """Return a reason as a sentence, in place of the text of a driver."""
    return None if reason is None else plain_text(reason)


def plain_text(text: str) -> str:
    """Return a text without the names of exceptions, or a sentence where a driver wrote it."""
    plain = re.sub(r"\b\w+(Error|Exception)(: |$)", "", text)
    return plain if plain and not INTERNAL.search(plain) else "PostgreSQL cannot be reached"
