"""The status of the service, for people, the page, and monitoring."""

import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.listener import Listener
from rowsignal.service.figures import Figures
from rowsignal.service.probe import Probe
from rowsignal.sse import Grant, Outlet, TableGrant
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.grants import EVERY_TABLE
from rowsignal.triggers import TableStatus

STATUS_TIMEOUT = 2.0
UNREACHABLE = "PostgreSQL cannot be reached"
INTERNAL = re.compile(
    r"sqlalchemy|asyncpg|<class|Traceback|0x[0-9a-f]{6}|\[Errno|Connect call failed"
)


class StatusReport:
    """Builds the status from the state of the probe, the listener and the fan-out."""

    def __init__(
        self, engine: AsyncEngine, outlet: Outlet, probe: Probe, *, has_tokens: bool
    ) -> None:
        self.figures = Figures(outlet, has_tokens=has_tokens)
        self._engine = engine
        self._outlet = outlet
        self._probe = probe
        self._state: tuple[str, datetime] = ("stopped", self.figures.started_at)

    def readiness(self) -> str | None:
        """Return why the service is not ready, or None; never waits."""
        return "stopping" if self._outlet.fanout.is_closing else self._probe.problem

    async def report(self, version: str, grant: Grant) -> dict[str, Any]:
        """Return the status as a JSON object, with the tables that a grant names."""
        facts = await self._probe.refreshed(STATUS_TIMEOUT)
        reason = self.readiness()
        return {
            **self.figures.report(version, grant, reason),
            "state": self.figures.state(reason, has_asked=self._probe.has_asked),
            "database": facts.get("database"),
            "listener": self._listener(facts),
            "log": self._log(facts),
            "tables": [self._table(it, held, facts) for it, held in self.figures.granted(grant)],
            "candidates": facts.get("candidates", []) if EVERY_TABLE in grant.tables else [],
        }

    def tables(self) -> list[dict[str, Any]]:
        """Return how all offered tables are, as far as is known."""
        facts, whole = self._probe.facts, TableGrant()
        return [self._table(it, whole, facts) for it in self._outlet.exposures.values()]

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
            "origin": state.origin,
            "unrelayed": len(state.unrelayed),
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
        return {
            **self.figures.table(exposure, held, facts.get("rows", {}).get(name)),
            "capture": kind,
            **_trigger(name, kind, facts.get("triggers")),
        }


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
    plain = re.sub(r"\b\w+(Error|Exception): ", "", text)
    # Only as all that is told of a cause: a table's name may look like an exception's.
    plain = re.sub(r"(^|: )\w+(Error|Exception)(?=\.?$)", rf"\1{UNREACHABLE}", plain)
    return plain if plain and not INTERNAL.search(plain) else UNREACHABLE
