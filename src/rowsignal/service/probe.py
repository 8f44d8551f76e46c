"""The probe: a task that queries the state of the database, so that requests need not wait."""

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
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.statements import query
from rowsignal.sse import Outlet
from rowsignal.sse.http.problems import described
from rowsignal.triggers import trigger_status

logger = logging.getLogger("rowsignal.service")

INTERVAL = 1.0
QUERY_TIMEOUT = 2.0
SILENCE = 4.0  # seconds without an answer after which the database counts as unavailable
FACTS_INTERVAL = 15.0
FRESH = 0.25
FACTS_TIMEOUT = 5.0


class Probe:
    """The state of the database, as a task that runs `run` has read it.

    `facts` are the results of the last successful read of tables, triggers and the log.
    """

    def __init__(
        self, engine: AsyncEngine, outlet: Outlet, find_tables: Callable[[], Awaitable[None]]
    ) -> None:
        self._outlet = outlet
        self._find_tables = find_tables
        self._checks = SideConnection(beside(engine))
        self._reads = SideConnection(beside(engine))
        self._error: str | None = "The database has not been asked yet."
        self.has_asked = False
        self._answered_at = 0.0
        self._facts_at = 0.0
        self._refreshing: asyncio.Task[None] | None = None
        self.facts: Mapping[str, Any] = {}
        self.lag = Lag()

    async def begin(self) -> None:
        """Run the first check."""
        await self.check()
        await self.refreshed()
        self._facts_at = 0.0  # the state changes quickly while a program starts

    async def run(self) -> None:
        """Run the checks in intervals."""
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
        await self._reads.close()

    @property
    def problem(self) -> str | None:
        """The reason why streams cannot be served now, or None; never waits."""
        if self._error is not None:
            return self._error
        silence = time.monotonic() - self._answered_at
        return f"PostgreSQL has not answered for {silence:.0f} s." if silence > SILENCE else None

    async def check(self) -> None:
        """Check that the database answers."""

        async def ask(connection: AsyncConnection) -> int:
            result = await connection.exec_driver_sql(query("service_check"))
            return int(result.scalar_one())

        if await self._tried(self._checks.run(ask, timeout=QUERY_TIMEOUT)):
            self._answered_at = time.monotonic()
        self.has_asked = True

    async def refreshed(self, timeout: float = FACTS_TIMEOUT) -> Mapping[str, Any]:
        """Return recent facts; after `timeout` seconds, the earlier ones."""
        if time.monotonic() - self._facts_at > FRESH:
            if self._refreshing is None or self._refreshing.done():
                self._refreshing = asyncio.create_task(self._refresh(), name="rowsignal facts")
            await asyncio.wait([self._refreshing], timeout=timeout)
        return self.facts

    async def _tried(self, asking: Awaitable[int]) -> bool:
        try:
            xmax = await asking
        except (*OUTAGES, RowSignalError) as error:
            if self._error is None:
                logger.warning("the database of the service does not answer: %s", described(error))
            self._error = "PostgreSQL cannot be reached, or does not answer."
            return False
        self._error = None
        self.lag.note(xmax, self._outlet.sources.position)
        return True

    async def _refresh(self) -> None:
        try:
            await self._find_tables()
            await self._outlet.sources.refresh()
            self.facts = await self._reads.run(self._read, timeout=FACTS_TIMEOUT)
        except (*OUTAGES, RowSignalError) as error:
            logger.warning("the state of the offered tables cannot be read: %s", described(error))
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
    """The lag: the age of the oldest transaction that readers of the log have not reached."""

    def __init__(self) -> None:
        self._marks: deque[tuple[float, int]] = deque(maxlen=10_000)

    def note(self, xmax: int, position: str | None) -> None:
        """Record the positions of the database and of the readers."""
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
    if not isinstance(found, Position):  # no position, or one that the server stores
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
