"""The retention of the change log, and the pruning of what is older."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.reader import explained
from rowsignal.postgres.connections import beside, driver_of
from rowsignal.postgres.statements import query


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """The limits of the log: changes up to `max_age` seconds old, in about `max_bytes` at most.

    The database stores one for every process that prunes (`set_retention`). A reader that was
    away for longer gets a `Reset`.
    """

    max_age: float = 3 * 24 * 3600.0
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        if self.max_age < 0 or self.max_bytes < 0:
            raise ValueError(
                f"{self} keeps less than nothing; both limits are 0 (everything goes) or more."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneReport:
    """The result of one pruning.

    `deleted` counts changes, `bytes_left` estimates the size of those that are kept. `is_skipped`
    says that another process was pruning, so this call did nothing.
    """

    deleted: int
    bytes_left: int
    is_skipped: bool


async def get_retention(engine: AsyncEngine, *, url: str | None = None) -> Retention:
    """Return the retention stored in the database; initially three days and 1 GiB."""
    async with _driver(engine, url) as driver:
        return Retention(**await driver.fetchrow(query("log_retention")))


async def set_retention(
    engine: AsyncEngine, retention: Retention, *, url: str | None = None
) -> None:
    """Store a retention for every process that prunes from now on.

    `url` is the address of the same database's primary where `engine` connects elsewhere.
    """
    async with _driver(engine, url) as driver:
        age = timedelta(seconds=retention.max_age)
        await driver.execute(query("log_retain"), age, retention.max_bytes)


async def prune(
    engine: AsyncEngine,
    retention: Retention | None = None,
    *,
    batch_size: int = 10_000,
    pause: float = 0.01,
    url: str | None = None,
) -> PruneReport:
    """Delete the changes beyond the retention (default: the stored one).

    Call it about once a minute: age and size are known from earlier calls, so the first calls only
    record a checkpoint. It blocks no other session and waits for none: it takes no lock that a
    writer or a reader needs, deletes batches of `batch_size` changes, `pause` seconds apart, and
    does nothing while another process prunes. `url` as in `set_retention`.
    """
    async with _driver(engine, url) as driver:
        return await _prune(driver, retention, batch_size, lambda: asyncio.sleep(pause))


@asynccontextmanager
async def _driver(engine: AsyncEngine, url: str | None) -> AsyncIterator[asyncpg.Connection]:
    ours = beside(engine, url)
    try:
        async with ours.connect() as connection:
            yield await driver_of(connection)
    except asyncpg.PostgresError as error:
        raise explained(error) from error
    finally:
        await ours.dispose()


async def _prune(
    driver: asyncpg.Connection,
    keep: Retention | None,
    batch_size: int,
    rest: Callable[[], Awaitable[None]],
) -> PruneReport:
    limits: tuple[object, ...] = ()
    if keep is None:
        statement = query("log_prune_stored")
    else:
        statement = query("log_prune")
        limits = timedelta(seconds=keep.max_age), keep.max_bytes
    deleted, start = 0, "0"
    while True:
        done = await driver.fetchrow(statement, *limits, batch_size, start)
        # Between two batches another process may have taken over.
        if not done["is_ours"]:
            return PruneReport(deleted=deleted, bytes_left=0, is_skipped=not deleted)
        deleted += done["deleted"]
        if done["reached"] is None:
            return PruneReport(deleted=deleted, bytes_left=done["bytes"], is_skipped=False)
        start = done["reached"]
        await rest()
