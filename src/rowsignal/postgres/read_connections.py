"""Reads that do not block each other: a quick connection, and one for slow or locked tables.

A read that meets a lock, or takes long, on the quick connection is moved to the slow one, and so
are the next reads of the same lane until one is quick again. So a table under ALTER TABLE costs
the others one lock timeout. There are two connections at most, the second opened when needed.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.postgres.connections import Attempts, SideConnection
from rowsignal.postgres.errors import is_locked

Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[Result]]

# An ALTER TABLE that waits blocks new readers, too: each wait for a lock counts.
QUICK = {"lock_timeout": "20ms", "statement_timeout": "1s"}
SLOW = {"lock_timeout": "200ms", "statement_timeout": "10s"}
SLOW_READ = 0.25  # seconds from which a lane is slow, for a single row
SLOW_ROW = 0.0002  # and for each further one


class ReadConnections:
    """Two side connections that share reads by lane; a lane groups reads that are slow together."""

    def __init__(self, make_engine: Callable[[], AsyncEngine]) -> None:
        self.attempts = Attempts()
        self._quick = SideConnection(make_engine(), settings=QUICK, attempts=self.attempts)
        self._slow = SideConnection(make_engine(), settings=SLOW, attempts=self.attempts)
        self._slow_lanes: set[Hashable] = set()

    async def run(
        self, work: Work[Result], *, timeout: float, lane: Hashable = None, rows: int = 1
    ) -> Result:
        """Run `work`, which may run twice; raise PostgreSQL's 55P03 while its table is locked.

        `TimeoutError` after `timeout` seconds of its turn. `rows` is how many it reads: many may
        take their time.
        """
        limit = SLOW_READ + SLOW_ROW * rows
        if lane not in self._slow_lanes:
            try:
                return await self._timed(self._quick, work, lane, timeout, limit)
            except Exception as error:
                if not is_locked(error):
                    raise
            self._slow_lanes.add(lane)
        return await self._timed(self._slow, work, lane, timeout, limit)

    def is_slow(self, lane: Hashable) -> bool:
        """Tell whether reads of a lane have met a lock or taken long lately."""
        return lane in self._slow_lanes

    def forget(self, lane: Hashable) -> None:
        """Forget a lane that is no longer used."""
        self._slow_lanes.discard(lane)

    async def close(self) -> None:
        """Close both connections; a later read opens them again."""
        await asyncio.gather(self._quick.close(), self._slow.close())

    async def _timed(
        self,
        connection: SideConnection,
        work: Work[Result],
        lane: Hashable,
        timeout: float,
        limit: float,
    ) -> Result:
        began = 0.0

        async def timed(inner: AsyncConnection) -> Result:
            nonlocal began
            began = time.perf_counter()  # its turn has come: queueing is no fault of this lane
            return await work(inner)

        result = await connection.run(timed, timeout=timeout)
        seconds = time.perf_counter() - began
        if seconds > limit:
            self._slow_lanes.add(lane)
        # Half of the limit: a lane near it would change the connection with every read.
        elif seconds < limit / 2:
            self._slow_lanes.discard(lane)
        return result
