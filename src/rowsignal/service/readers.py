"""Readers: the open streams of this process, and the named consumers of the log."""

import asyncio
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import MissingRightError, SchemaVersionError
from rowsignal.handlers import ConsumerLag, consumer_lag
from rowsignal.listener import OUTAGES
from rowsignal.service.shared import SharedAnswer
from rowsignal.sse import Grant, Outlet
from rowsignal.sse.access.grants import EVERY_TABLE
from rowsignal.sse.delivery.outlet import OpenStream

logger = logging.getLogger("rowsignal.service")

MOST = 200  # streams in one answer: those that lag most
KEPT = 5.0
TIMEOUT = 5.0


class ReadersReport:
    """Tells of streams and consumers what a grant lets one know."""

    def __init__(self, engine: AsyncEngine | None, outlet: Outlet) -> None:
        self._engine = engine
        self._outlet = outlet
        self._consumers = SharedAnswer(self._ask, keep=KEPT, timeout=TIMEOUT)
        if outlet.shared is not None:
            outlet.shared.streams = self._laggards

    async def report(self, grant: Grant) -> dict[str, Any]:
        """Return the streams (of the grant's principal, or of all) and the consumers.

        Of other processes, which share their limits with this one, those streams that lag most.
        """
        sees_all = EVERY_TABLE in grant.tables
        streams = [*map(self._stream, self._outlet.streams), *await self._elsewhere()]
        rows = sorted(
            (it for it in streams if sees_all or it["principal"] == grant.principal), key=_lag_first
        )
        return {
            "pid": os.getpid(),
            "total": len(rows),
            "readers": rows[:MOST],
            "consumers": await self._known_consumers() if sees_all else [],
        }

    async def _known_consumers(self) -> list[Mapping[str, Any]] | None:
        """Return the consumers; None while the database does not answer, as the streams do."""
        try:
            return list(map(_consumer, await self._consumers.get()))
        except OUTAGES as error:
            logger.info("the consumers are not known just now: %s", type(error).__name__)
            return None

    def _laggards(self) -> list[dict[str, Any]]:
        return sorted(map(self._stream, self._outlet.streams), key=_lag_first)[:MOST]

    async def _elsewhere(self) -> list[dict[str, Any]]:
        shared = self._outlet.shared
        found = await shared.others() if shared is not None else ()
        places = [({"host": it.get("host"), "pid": it.get("pid")}, it["streams"]) for it in found]
        return [row | place for place, rows in places for row in rows if _is_row(row)]

    def _stream(self, stream: OpenStream) -> dict[str, Any]:
        began, now = stream.reader.writing_since, asyncio.get_running_loop().time()
        return {
            "principal": stream.principal,
            "tables": list(stream.tables),
            "since": datetime.fromtimestamp(stream.began_at, UTC).isoformat(),
            "lag": 0.0 if began is None else max(now - began, 0.0),
            "buffer": stream.reader.size,
            "limit": stream.reader.limit,
            "resets": self._outlet.resets_of(stream.principal),
        }

    async def _ask(self) -> list[ConsumerLag]:
        if self._engine is None:  # a gateway
            return []
        try:
            return await consumer_lag(self._engine)
        except (SchemaVersionError, MissingRightError):
            return []  # there are none, or this role may not know of them


def _lag_first(row: Mapping[str, Any]) -> tuple[float, str]:
    return -row["lag"], row["since"]


def _is_row(row: object) -> bool:
    """Tell whether another process has written a row as this version does."""
    return (
        isinstance(row, dict)
        and isinstance(row.get("lag"), int | float)
        and isinstance(row.get("since"), str)
        and "principal" in row
    )


def _consumer(lag: ConsumerLag) -> Mapping[str, Any]:
    return {
        "name": lag.consumer,
        "partition": lag.partition,
        "partitions": lag.partitions,
        "tables": list(map(_plain, lag.tables)),
        "worker": lag.holder,
        "lag_changes": lag.lag_changes,
        "lag_seconds": lag.lag_seconds,
        "retention_used": lag.retention_used,
        "attempts": lag.attempts,
        "dead_letters": lag.dead_letters,
        "resets": lag.resets,
        "reset_at": lag.reset_at and lag.reset_at.isoformat(),
        "problem": lag.problem,
    }


def _plain(name: str) -> str:
    """Return a quoted and qualified name as tables are called here."""
    schema, _, table = name.strip('"').partition('"."')
    return f"{schema}.{table}".replace('""', '"')
