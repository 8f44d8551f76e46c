"""What the service says about itself: to people, to the page, and to whoever runs it."""

import os
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.exceptions import RowSignalError
from rowsignal.listener import OUTAGES, Listener
from rowsignal.postgres.connections import OwnConnection, beside
from rowsignal.postgres.statements import query
from rowsignal.service.settings import Settings
from rowsignal.sse import Outlet
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import Event
from rowsignal.triggers import trigger_status

WINDOW = 30.0
SAMPLES = 5000
SAMPLES_A_FLUSH = 50
FRESH = 1.5
ANSWER = 5.0


class Latency:
    """Seconds from a change's capture to its being handed to the readers, of the last while."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES)

    def note(self, events: Sequence[Event]) -> None:
        """Take in some events that are on their way to the readers just now."""
        now = time.time()
        for event in events[:SAMPLES_A_FLUSH]:
            if event.captured_at is not None:
                self._samples.append((now, max(now - event.captured_at.timestamp(), 0.0)))

    def summary(self) -> dict[str, float | int] | None:
        """Return median and 99th percentile; None when nothing has happened."""
        since = time.time() - WINDOW
        recent = sorted(seconds for at, seconds in self._samples if at >= since)
        if not recent:
            return None
        p50, p99 = (recent[int(len(recent) * share)] for share in (0.5, 0.99))
        return {"p50": p50, "p99": p99, "count": len(recent)}


class StatusReport:
    """Collects the status, asking the database at most once in a while however many look."""

    def __init__(self, settings: Settings, engine: AsyncEngine, outlet: Outlet) -> None:
        self._settings = settings
        self._engine = engine
        self._outlet = outlet
        self._own = OwnConnection(beside(engine))
        self._started_at = datetime.now(UTC)
        self._facts: dict[str, Any] = {}
        self._asked_at = -FRESH
        self._state: tuple[str, datetime] = ("stopped", self._started_at)
        self.latency = Latency()
        outlet.fanout.flushed = self.latency.note

    async def aclose(self) -> None:
        """Close the connection."""
        await self._own.close()

    async def readiness(self) -> str | None:
        """Return why the service is not ready, or None."""
        if self._outlet.fanout.is_closing:
            return "stopping"
        await self._ask()
        return self._facts.get("error")

    async def report(self, version: str) -> dict[str, Any]:
        """Return the whole status as a JSON object."""
        reason = await self.readiness()
        fanout = self._outlet.fanout
        counts = fanout.counts
        return {
            "version": version,
            "pid": os.getpid(),
            "now": datetime.now(UTC).isoformat(),
            "started_at": self._started_at.isoformat(),
            "ready": reason is None,
            "reason": reason,
            "state": "stopping" if fanout.is_closing else "ready" if reason is None else "degraded",
            "auth": bool(self._settings.keys),
            "database": self._facts.get("database"),
            "listener": self._listener(),
            "log": self._log(),
            "latency": self.latency.summary(),
            "readers": {
                "now": fanout.readers,
                "limit": fanout.limits.readers,
                "resets": counts.resets,
                "overflows": counts.overflows,
                "delivered": counts.delivered,
                "bytes": counts.bytes,
            },
            "tables": [self._table(exposure) for exposure in self._outlet.exposures.values()],
        }

    def _listener(self) -> dict[str, Any]:
        state = Listener.of(self._engine).state
        mode = "reconnecting" if state.mode == "polling" and state.epoch else state.mode
        if mode != self._state[0]:
            self._state = mode, datetime.now(UTC)
        return {
            "state": mode,
            "reason": state.reason,
            "since": self._state[1].isoformat(),
            "reconnects": max(state.epoch - 1, 0),
            "notifications": state.notifications,
            "queue_usage": self._facts.get("queue_usage"),
            "lag": None,
        }

    def _log(self) -> dict[str, Any] | None:
        found = self._facts.get("log")
        if found is None:
            return None
        return {**found, "position": self._outlet.sources.log.position}

    def _table(self, exposure: Exposure) -> dict[str, Any]:
        name, fanout = exposure.name, self._outlet.fanout
        capture = self._outlet.sources.captures.get(name)
        kind = "none" if capture is None or capture.kind is None else capture.kind
        last = fanout.counts.last_change.get(name)
        changes = fanout.counts.changes.get(name, Counter())
        schema, table = exposure.full_name
        return {
            "schema": schema,
            "table": table,
            "name": name,
            "capture": kind,
            **self._trigger(name, kind),
            "key": list(exposure.key),
            "columns": {
                column: str(exposure.table.c[column].type).lower() for column in exposure.fields
            },
            "estimated_rows": self._facts.get("rows", {}).get(name),
            "readers": fanout.readers_of(name),
            "changes": {
                operation: changes[operation]
                for operation in ("insert", "update", "delete", "truncate")
            },
            "last_change_at": last and datetime.fromtimestamp(last, UTC).isoformat(),
        }

    def _trigger(self, name: str, kind: str) -> dict[str, Any]:
        found = self._facts.get("triggers", {}).get(name)
        if found is not None and kind != "none":
            state, problem = str(found.state), found.problem
        else:
            state, problem = "missing", f"{name} has no triggers: nothing is told of it."
        mend = f"rowsignal install {name}" + ("" if kind == "hint" else " --log")
        is_well = state == "installed"
        return {
            "trigger": state,
            "problem": None if is_well else problem,
            "mend": None if is_well else mend,
        }

    async def _ask(self) -> None:
        if time.monotonic() - self._asked_at < FRESH:
            return
        self._asked_at = time.monotonic()
        try:
            await self._outlet.sources.look()
            self._facts = await self._own.run(self._read, timeout=ANSWER)
        except (*OUTAGES, RowSignalError) as error:
            self._facts = {"error": f"The database does not answer: {type(error).__name__}."}

    async def _read(self, connection: AsyncConnection) -> dict[str, Any]:
        names = list(self._outlet.exposures)
        database = (await connection.execute(sa.text(query("service_database")))).mappings().one()
        estimates = await connection.execute(sa.text(query("service_estimates")), {"names": names})
        rows = {f"{schema}.{name}": rows for schema, name, rows in estimates if rows >= 0}
        triggers = await trigger_status(connection)
        facts: dict[str, Any] = {
            "triggers": {f"{it.schema}.{it.table}": it for it in triggers},
            "database": {key: database[key] for key in ("name", "server_version")},
            "queue_usage": database["queue_usage"],
            "rows": rows,
        }
        kinds = {capture.kind for capture in self._outlet.sources.captures.values()}
        if "log" in kinds:
            facts["log"] = await _log_facts(connection)
        return facts


async def _log_facts(connection: AsyncConnection) -> Mapping[str, Any]:
    found = (await connection.execute(sa.text(query("service_log")))).mappings().one()
    oldest = found["oldest_at"]
    return {
        "bytes": found["bytes"],
        "rows": found["rows"] if found["rows"] >= 0 else None,
        "oldest_at": oldest and oldest.isoformat(),
        "retention_seconds": found["retention_seconds"],
        "retention_bytes": found["retention_bytes"],
    }
