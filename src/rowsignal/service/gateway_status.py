"""The status of a gateway: its stream in NATS, the relay that fills it, and its readers."""

from datetime import datetime
from typing import Any

from rowsignal.doctor import Finding, Severity, stream_findings
from rowsignal.relay import JetStreamSource, StreamHealth, StreamWatch, stream_name
from rowsignal.service.figures import Figures
from rowsignal.service.findings import check_grant, document_of
from rowsignal.sse import Grant, Outlet

NO_HISTORY = (
    "A gateway shows no history: it is in the database's change log, which `rowsignal serve` and"
    " the dashboard beside the database read."
)
NO_ROWS = "This gateway has no database to read the current rows from: start it with --url."
NO_DATABASE = "The database itself is not examined here: a gateway does not connect to it for that."
EXAMINE = "rowsignal doctor --nats URL"
# A table's triggers are known to the relay, which tells of faults by a reset.
UNWATCHED: dict[str, Any] = {"trigger": "unknown", "problem": None, "fix": None, "mend": None}


class GatewayStatus:
    """Builds the status of what is in sight of a gateway."""

    def __init__(
        self,
        outlet: Outlet,
        source: JetStreamSource,
        watch: StreamWatch,
        database: str,
        *,
        has_tokens: bool,
    ) -> None:
        self.figures = Figures(outlet, has_tokens=has_tokens)
        self._source = source
        self._watch = watch
        self.database = database
        self._relay: tuple[str, datetime] = ("unknown", self.figures.started_at)

    async def report(self, version: str, grant: Grant) -> dict[str, Any]:
        """Return the status as a JSON object, with the tables that a grant names."""
        reason, health = self._watch.problem, self._watch.health
        return {
            **self.figures.report(version, grant, reason),
            "state": self.figures.state(reason, has_asked=self._watch.has_asked),
            "database": {"name": self.database, "server_version": None},
            "listener": None,
            "log": None,
            "stream": None if health is None else self._stream(health),
            "relay": self._relay_state(health),
            "tables": [
                {**self.figures.table(it, held, None), "capture": "relay", **UNWATCHED}
                for it, held in self.figures.granted(grant)
            ],
            "candidates": [],
            "unavailable": {
                "history": NO_HISTORY,
                **({} if self._source.engine is not None else {"snapshot": NO_ROWS}),
            },
        }

    def _stream(self, health: StreamHealth) -> dict[str, Any]:
        read = self._source.sequence
        return {
            "name": health.name,
            "first_sequence": health.first_sequence,
            "last_sequence": health.last_sequence,
            "read_sequence": read,
            "behind": None if read is None else max(health.last_sequence - read, 0),
            "messages": health.messages,
            "bytes": health.bytes,
            "max_bytes": health.max_bytes,
            "max_age": health.max_age,
            "oldest_at": health.oldest_at and health.oldest_at.isoformat(),
            "newest_at": health.newest_at and health.newest_at.isoformat(),
            "replicas": health.replicas,
            "replicas_behind": health.replicas_behind,
        }

    def _relay_state(self, health: StreamHealth | None) -> dict[str, Any]:
        lag = None if health is None or self._watch.problem else health.relay_lag
        state = "unknown" if self._watch.problem else "silent" if lag is None else "at work"
        if state != self._relay[0]:
            self._relay = state, datetime.now(self.figures.started_at.tzinfo)
        return {"state": state, "lag": lag, "since": self._relay[1].isoformat()}


class GatewayDoctor:
    """Examines what a gateway sees: the stream and the relay."""

    def __init__(self, watch: StreamWatch, database: str) -> None:
        self._watch = watch
        self._database = database

    async def report(self, grant: Grant, *, again: bool) -> dict[str, Any]:  # noqa: ARG002 -- it is
        """Return the findings of the last second, the worst first.

        Raises `NotPermittedError` for a grant of some tables only.
        """
        check_grant(grant)
        return document_of([*self._findings(), self._of_database()])

    def _findings(self) -> list[Finding]:
        if self._watch.problem and self._watch.health is not None:
            fix = "Check the servers of NATS, and what lies between."
            return [Finding(Severity.ERROR, "NATS", self._watch.problem, fix)]
        return stream_findings(self._watch.health, stream_name(self._database))

    @staticmethod
    def _of_database() -> Finding:
        return Finding(Severity.NOTE, "database", NO_DATABASE, EXAMINE)
