"""Administration of consumers: lag, reset, skip, dead letters."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.log import ChangeLog
from rowsignal.change_log.reader import explained
from rowsignal.changes import Change
from rowsignal.exceptions import NotFoundError
from rowsignal.handlers.letters import change_from_json
from rowsignal.handlers.places import Place, place_of
from rowsignal.postgres.connections import beside, driver_of
from rowsignal.postgres.statements import query


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerLag:
    """A partition of a consumer, and the changes that it has not handled.

    `position` is the snapshot up to which everything is handled. `lag_changes` counts the changes
    of the consumer's tables after it (of all its partitions, up to 100,000), `lag_seconds` is the
    age of the first of them. `retention_used` is the share of the retention that lies after the
    position: at 1 pruning begins to delete changes that were not handled. `problem` says why the
    log no longer has them. `holder` is the worker with the lease, which lasts for another
    `lease_seconds`; None without a lease. `attempts` attempts at the next change have failed, the
    last with `error`.
    """

    consumer: str
    partition: int
    partitions: int
    tables: tuple[str, ...]
    position: str
    handled: int
    lag_changes: int
    lag_seconds: float
    retention_used: float | None
    problem: str | None
    holder: str | None
    lease_seconds: float | None
    attempts: int
    error: str | None
    resets: int
    reset_at: datetime | None
    reset_reason: str | None
    dead_letters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A change whose handler has failed in every attempt, with its last error.

    `is_due` says that a worker will handle it once more.
    """

    id: int
    consumer: str
    partition: int
    change: Change
    error: str
    attempts: int
    failed_at: datetime
    is_due: bool


async def consumer_lag(engine: AsyncEngine) -> list[ConsumerLag]:
    """Return every partition of every consumer, and how far behind it is."""
    async with _driver(engine) as driver:
        rows = await driver.fetch(query("consumer_lag"))
    return [_lag(dict(row)) for row in rows]


def _lag(row: dict[str, Any]) -> ConsumerLag:
    row["partition"] = row.pop("number")
    row["position"] = row.pop("position_seen")
    row["tables"] = tuple(row["tables"])
    return ConsumerLag(**row)


async def reset_consumer(engine: AsyncEngine, name: str, to: str = "now") -> None:
    """Put a consumer at `"now"`, at the `"start"` of the log, or at a position.

    Changes in between are skipped, or handled again. Workers may keep running: the change that one
    is handling is rolled back. Raises `NotFoundError` for an unknown name, `PositionError` for a
    malformed position.
    """
    async with _driver(engine) as driver:
        place = None if to == "start" else await _place(engine, driver, to)
        arguments = (None, None, 0) if place is None else (place.seen, place.upto, place.last_id)
        moved = await driver.fetchval(query("consumer_set"), name, *arguments, f"reset to {to}")
    if not moved:
        raise _unknown(name)


async def _place(engine: AsyncEngine, driver: asyncpg.Connection, to: str) -> Place:
    if to != "now":
        return await place_of(driver, to)
    async with ChangeLog(engine) as log:
        return await place_of(driver, await log.position())


async def skip_failing(engine: AsyncEngine, name: str, partition: int | None = None) -> int:
    """Turn the changes at which a consumer fails into dead letters; return how many.

    Without `partition`, in all partitions. Without failing changes it does nothing.
    """
    async with _driver(engine) as driver:
        return int(await driver.fetchval(query("consumer_skip"), name, partition))


async def drop_consumer(engine: AsyncEngine, name: str) -> None:
    """Delete a consumer, its position and its dead letters; its workers begin anew."""
    async with _driver(engine) as driver:
        if not await driver.fetchval(query("consumer_drop"), name):
            raise _unknown(name)


async def dead_letters(
    engine: AsyncEngine, name: str | None = None, *, limit: int = 1000
) -> list[DeadLetter]:
    """Return the dead letters of one consumer or of all, oldest first."""
    async with _driver(engine) as driver:
        rows = await driver.fetch(query("letters"), name, limit)
    return [DeadLetter(**{**row, "change": change_from_json(row["change"])}) for row in rows]


async def retry_dead_letters(
    engine: AsyncEngine, name: str, ids: Sequence[int] | None = None
) -> int:
    """Mark dead letters of a consumer (default: all) to be handled once more; return how many.

    A worker handles them within seconds, in one transaction each. A letter that succeeds is
    deleted; one that fails stays, with the new error.
    """
    return await _letters(engine, "letters_retry", name, ids)


async def drop_dead_letters(
    engine: AsyncEngine, name: str, ids: Sequence[int] | None = None
) -> int:
    """Delete dead letters of a consumer (default: all); return how many."""
    return await _letters(engine, "letters_drop", name, ids)


async def _letters(
    engine: AsyncEngine, statement: str, name: str, ids: Sequence[int] | None
) -> int:
    async with _driver(engine) as driver:
        wanted = None if ids is None else list(ids)
        return len(await driver.fetch(query(statement), name, wanted))


@asynccontextmanager
async def _driver(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    ours = beside(engine)
    try:
        async with ours.connect() as connection:
            driver = await driver_of(connection)
            async with (
                driver.transaction()
            ):  # behind a pooler a statement must be part of a transaction
                yield driver
    except asyncpg.PostgresError as error:
        raise explained(error) from error
    finally:
        await ours.dispose()


def _unknown(name: str) -> NotFoundError:
    return NotFoundError(
        f"There is no consumer {name!r} in this database: `rowsignal consumers` lists them."
    )
