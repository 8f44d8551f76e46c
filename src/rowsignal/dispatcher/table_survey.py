"""The survey of all watched tables in one query: triggers, and whether rows were written.

A thousand idle tables that were each asked for every half minute would be seventy queries a second.
"""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import Capture, captures
from rowsignal.triggers.settings import TableName

SHARE = 6  # a survey is used for this part of the safety interval

Activity = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class TableLook:
    """The result of a survey for one table.

    `activity` changes when a row of the table was inserted, updated or deleted, some seconds after
    the commit. It is None where PostgreSQL does not count (`track_counts`, or a standby).
    """

    capture: Capture
    activity: Activity | None


class TableSurvey:
    """Looks at all watched tables at once, and answers for each from the same result."""

    def __init__(self, listener: Listener, names: Collection[TableName], pace: Pace) -> None:
        """`names` is a live view of the watched tables."""
        self.taken = 0  # how many surveys there were
        self._listener = listener
        self._names = names
        self._timeout = pace.query_timeout
        self._fresh = pace.safety / SHARE
        self._looks: Mapping[TableName, TableLook] = {}
        self._taken_at = float("-inf")
        self._turn = asyncio.Lock()

    async def look(self, name: TableName) -> TableLook:
        """Return a recent look at a table, perhaps one that was taken for another table."""
        async with self._turn:
            is_fresh = time.monotonic() - self._taken_at < self._fresh
            if not is_fresh or name not in self._looks:
                began = time.monotonic()
                self._looks = await self._take({name, *self._names})
                self._taken_at = began
                self.taken += 1
            return self._looks[name]

    async def look_now(self, name: TableName) -> TableLook:
        """Return a look at a table alone, taken after this call."""
        return (await self._take([name]))[name]

    async def _take(self, names: Iterable[TableName]) -> Mapping[TableName, TableLook]:
        asked = list(names)

        async def work(connection: AsyncConnection) -> dict[TableName, TableLook]:
            found = await captures(connection, asked)
            counts = await _counts(connection, found)
            looks = (TableLook(it, _activity(it, counts)) for it in found)
            return dict(zip(asked, looks, strict=True))

        return await self._listener.reads.run(
            work, lane="catalogue", timeout=self._timeout, rows=len(asked)
        )


async def _counts(connection: AsyncConnection, found: Iterable[Capture]) -> dict[int, int]:
    """Return a number for each relation that grows as rows of it are written."""
    relations = sorted({oid for capture in found for oid in capture.relations})
    rows = await connection.execute(text(query("table_activity")), {"relations": relations})
    return {relation: count for relation, count in rows}  # noqa: C416 -- dict() takes no rows


def _activity(capture: Capture, counts: Mapping[int, int]) -> Activity | None:
    if not all(relation in counts for relation in capture.relations):
        return None
    return tuple((relation, counts[relation]) for relation in capture.relations)
