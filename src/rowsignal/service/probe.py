"""The probe: a task that asks the database how it is, so that no request waits for it."""

import asyncio
import logging
import shlex
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log.positions import Position, decode
from rowsignal.exceptions import RowSignalError
from rowsignal.listener import OUTAGES
from rowsignal.postgres.connections import OwnConnection, beside
from rowsignal.postgres.statements import query
from rowsignal.sse import Outlet
from rowsignal.sse.http.problems import described
from rowsignal.triggers import trigger_status

logger = logging.getLogger("rowsignal.service")

INTERVAL = 1.0
QUERY_TIMEOUT = 2.0
SILENCE = 4.0  # seconds without an answer after which the database counts as away
FACTS_INTERVAL = 15.0
FRESH = 0.25
FACTS_TIMEOUT = 5.0


class Probe:
    """What is known of the database, kept by a task that `run` is the body of.

    `facts` are those of the last successful look at tables, triggers and the log.
    """

    def __init__(
        self, engine: AsyncEngine, outlet: Outlet, find_tables: Callable[[], Awaitable[None]]
    ) -> None:
        self._outlet = outlet
        self._find_tables = find_tables
        self._checks = OwnConnection(beside(engine))
        self._looks = OwnConnection(beside(engine))
        self._error: str | None = "The database has not been asked yet."
        self.has_asked = False
        self._answered_at = 0.0
        self._facts_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self.facts: Mapping[str, Any] = {}
        self.lag = Lag()

    async def begin(self) -> None:
        """Ask for the first time."""
        await self.check()
        await self.refreshed()
        self._facts_at = 0.0  # much happens while a program starts

    async def run(self) -> None:
        """Ask again and again."""
        due = time.monotonic() + FACTS_INTERVAL
        while True:
            await self.check()
            if self._error is None and time.monotonic() > due:
                due = time.monotonic() + FACTS_INTERVAL
                await self.refreshed()
            await asyncio.sleep(INTERVAL)

    async def close(self) -> None:
        """Close the connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        await self._checks.close()
        await self._looks.close()

    @property
    def problem(self) -> str | None:
        """Why streams cannot be served just now, or None; answers at once."""
        if self._error is not None:
            return self._error
        silence = time.monotonic() - self._answered_at
        return f"PostgreSQL has not answered for {silence:.0f} s." if silence > SILENCE else None

    async def check(self) -> None:
        """Ask for a sign of life."""

        async def ask(connection: AsyncConnection) -> int:
            result = await connection.exec_driver_sql(query("service_check"))
            return int(result.scalar_one())

        if await self._tried(self._checks.run(ask, timeout=QUERY_TIMEOUT)):
            self._answered_at = time.monotonic()
        self.has_asked = True

    async def refreshed(self, patience: float = FACTS_TIMEOUT) -> Mapping[str, Any]:
        """Return facts of the last moments; after `patience` seconds what was known before."""
        if time.monotonic() - self._facts_at > FRESH:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh(), name="rowsignal facts")
            await asyncio.wait([self._refreshing], timeout=patience)
        return self.facts

    async def _tried(self, asking: Awaitable[int]) -> bool:
        try:
            xmax = await asking
        except (*OUTAGES, RowSignalError) as error:
            if self._error is None:
                logger.warning("the database does not answer: %s", described(error))
            self._error = "PostgreSQL cannot be reached, or does not answer."
            return False
        self._error = None
        self.lag.note(xmax, self._outlet.sources.position)
        return True

    async def _refresh(self) -> None:
        try:
            await self._find_tables()
            await self._outlet.sources.look()
            self.facts = await self._looks.run(self._read, timeout=FACTS_TIMEOUT)
        except (*OUTAGES, RowSignalError) as error:
            logger.warning("the state of the tables is not known just now: %s", described(error))
        self._facts_at = time.monotonic()

    async def _read(self, connection: AsyncConnection) -> Mapping[str, Any]:
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
        if not names:
            candidates = await connection.execute(sa.text(query("service_candidates")))
            facts["candidates"] = [_candidate(f"{schema}.{name}") for schema, name in candidates]
        return facts


class Lag:
    """How long ago the oldest transaction ended that the readers of the log have not reached."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=10_000)

    def note(self, xmax: int, position: str | None) -> None:
        """Note how far the database has come, and how far the readers have."""
        reached = _xmax(position)
        if reached is None:
            self._marks.clear()
            return
        self._marks.append((time.monotonic(), xmax))
        while self._marks and self._marks[0][1] <= reached:
            self._marks.popleft()

    @property
    def seconds(self) -> float:
        """The lag; 0 while the log is not followed."""
        return time.monotonic() - self._marks[0][0] if self._marks else 0.0


def _xmax(position: str | None) -> int | None:
    found = decode(position) if position else None
    if not isinstance(found, Position):  # not followed, or kept on the server
        return None
    return (found.upto or found.seen).xmax


def _candidate(name: str) -> dict[str, str]:
    return {"name": name, "command": shlex.quote(name)}


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
