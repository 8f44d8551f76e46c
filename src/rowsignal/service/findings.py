"""The doctor's findings, for pages: examined once for all that ask."""

from collections.abc import Container, Iterable
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.doctor import Finding, Severity, diagnose
from rowsignal.exceptions import NotPermittedError
from rowsignal.service.shared import SharedAnswer
from rowsignal.service.status import StatusReport, plain_text
from rowsignal.sse import Grant
from rowsignal.sse.access.grants import EVERY_TABLE

KEPT = 60.0
AGAIN = 3.0  # seconds between two examinations, however often one is asked for
TIMEOUT = 20.0
WORST_FIRST = ("error", "warning", "note", "ok")


class DoctorReport:
    """Runs the doctor on an engine's database, at most one at a time."""

    def __init__(
        self, engine: AsyncEngine, status: StatusReport, listen_url: str | None = None
    ) -> None:
        self._engine = engine
        self._status = status
        self._listen_url = listen_url
        self._findings = SharedAnswer(self._ask, keep=KEPT, timeout=TIMEOUT)

    async def report(self, grant: Grant, *, again: bool) -> dict[str, Any]:
        """Return the findings, the worst first; they name tables and roles of the whole database.

        Raises `NotPermittedError` for a grant of some tables only.
        """
        check_grant(grant)
        return await self._findings.get(max_age=AGAIN if again else None)

    async def _ask(self) -> dict[str, Any]:
        found = await diagnose(self._engine, listen_url=self._listen_url)
        found += self._without_triggers({finding.subject for finding in found})
        return document_of(found)

    def _without_triggers(self, known: Container[str]) -> list[Finding]:
        """Return the offered tables without triggers: the catalogue knows of no table to be so."""
        return [
            Finding(Severity.ERROR, it["name"], f"Triggers missing. {it['problem']}", it["fix"])
            for it in self._status.tables()
            if it["trigger"] == "missing" and it["name"] not in known
        ]


def check_grant(grant: Grant) -> None:
    """Raise `NotPermittedError` for a grant of some tables only."""
    if EVERY_TABLE not in grant.tables:
        raise NotPermittedError('The doctor is for grants of every table: "*".')


def document_of(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return findings of just now as a JSON object, the worst first."""
    ordered = sorted(findings, key=lambda it: WORST_FIRST.index(it.severity))
    return {
        "examined_at": datetime.now(UTC).isoformat(),
        "findings": list(map(_document, ordered)),
    }


def _document(finding: Finding) -> dict[str, Any]:
    return {
        "severity": str(finding.severity),
        "subject": finding.subject,
        "message": plain_text(finding.message),
        "fix": finding.fix,
    }
