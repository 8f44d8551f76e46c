"""The survey of all watched tables at once: their triggers, and whether rows were written.

A thousand idle tables, each with queries of its own every half minute, would be seventy a second.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.postgres.errors import is_outage
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import Capture, captures
from rowsignal.triggers.settings import TableName

SHARE = 6  # a survey is used for this part of the safety interval
TABLES_A_QUERY = 200  # others' reads on the same connection wait for one query at most

Count = tuple[int, int]
Activity = tuple[tuple[int, int, int], ...]  # relation, written rows, file


@dataclass(frozen=True, slots=True)
class SurveyedTable:
    """The result of a survey for one table.

    `activity` changes when a row of the table was inserted, updated or deleted, some seconds after
    the commit. It is None where PostgreSQL does not count: `track_counts` is off, the server is a
    standby, or rows are in a foreign table.
    """

    capture: Capture
    activity: Activity | None


class TableSurvey:
    """Asks for many watched tables in one query, and answers for each from the same result."""

    def __init__(self, listener: Listener, names: Collection[TableName], pace: Pace) -> None:
        """`names` is a live view of the watched tables."""
        self.taken = 0  # how many surveys there were
        self._listener = listener
        self._names = names
        self._timeout = pace.query_timeout
        self._fresh = pace.safety / SHARE
        self._surveyed: Mapping[TableName, SurveyedTable] = {}
        self._taken_at = float("-inf")
        self._failed_at = float("-inf")
        self._failure: Exception | None = None
        self._turn = asyncio.Lock()

    async def recent(self, name: TableName) -> SurveyedTable:
        """Return a recent result for a table, perhaps of a survey that another table asked for.

        A schema change of one table can fail the query for all: then each table asks alone.
        """
        try:
            return await self._shared(name)
        except Exception as error:
            if is_outage(error):
                raise
            return await self.current(name)

    async def current(self, name: TableName) -> SurveyedTable:
        """Return the result for a table alone, asked for after this call."""
        return (await self._take([name]))[name]

    async def _shared(self, name: TableName) -> SurveyedTable:
        asked_at = time.monotonic()
        async with self._turn:
            if self._failed_at >= asked_at and self._failure is not None:
                raise self._failure  # of the query that this call has waited for
            is_fresh = time.monotonic() - self._taken_at < self._fresh
            if not is_fresh or name not in self._surveyed:
                await self._renew({name, *self._names})
            return self._surveyed[name]

    async def _renew(self, names: Iterable[TableName]) -> None:
        began, asked = time.monotonic(), list(names)
        surveyed: dict[TableName, SurveyedTable] = {}
        try:
            for start in range(0, len(asked), TABLES_A_QUERY):
                surveyed |= await self._take(asked[start : start + TABLES_A_QUERY])
        except Exception as error:
            self._failed_at, self._failure = time.monotonic(), error
            raise
        self._surveyed, self._taken_at, self._failure = surveyed, began, None
        self.taken += 1

    async def _take(self, asked: Sequence[TableName]) -> Mapping[TableName, SurveyedTable]:
        async def work(connection: AsyncConnection) -> dict[TableName, SurveyedTable]:
            found = await captures(connection, asked)
            counts = await _counts(connection, found)
            surveyed = (SurveyedTable(it, _activity(it, counts)) for it in found)
            return dict(zip(asked, surveyed, strict=True))

        return await self._listener.reads.run(
            work, lane="catalogue", timeout=self._timeout, rows=len(asked)
        )


async def _counts(connection: AsyncConnection, found: Iterable[Capture]) -> dict[int, Count]:
    """Return the count of written rows and the file of each relation."""
    relations = sorted({oid for capture in found for oid in capture.relations})
    rows = await connection.execute(text(query("table_activity")), {"relations": relations})
    return {relation: (written, file) for relation, written, file in rows}


def _activity(capture: Capture, counts: Mapping[int, Count]) -> Activity | None:
    if not all(relation in counts for relation in capture.relations):
        return None
    return tuple((relation, *counts[relation]) for relation in capture.relations)
