"""The pool of request sessions: its numbers, and waits for a connection."""

import asyncio
import math
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import TimeoutError as PoolError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool
from sqlalchemy.util.concurrency import await_only, greenlet_spawn

from rowsignal.exceptions import PoolTimeoutError
from rowsignal.orm.sessions.connections import pool_exhausted

NUMBERS = (
    "size", "max_overflow", "capacity", "checked_in", "checked_out", "available", "saturation",
)  # fmt: skip


def capacity_of(pool: Pool) -> int | None:
    """Return the largest number of connections of a pool; None without a limit."""
    if not isinstance(pool, QueuePool):
        return None
    # A negative max_overflow is no limit to SQLAlchemy.
    return pool.size() + pool._max_overflow if pool._max_overflow >= 0 else None


def pool_status(pool: Pool) -> dict[str, Any]:
    """Return a pool's numbers; None for numbers that its class does not have."""
    if not isinstance(pool, QueuePool):
        return {"pool_class": type(pool).__name__, **dict.fromkeys(NUMBERS)}
    capacity, taken = capacity_of(pool), pool.checkedout()
    numbers = (
        pool.size(),
        pool._max_overflow,
        capacity,
        pool.checkedin(),
        taken,
        None if capacity is None else max(capacity - taken, 0),
        round(taken / capacity, 3) if capacity else None,
    )
    return {"pool_class": type(pool).__name__, **dict(zip(NUMBERS, numbers, strict=True))}


def check_seconds(name: str, value: object) -> None:
    """Raise `ValueError` for a timeout that is not a positive, finite number."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a number of seconds, finite and above 0.")


def pool_timed_out(pool: Pool, error: PoolError) -> PoolTimeoutError:
    """Return the error for a timeout of the pool itself."""
    return PoolTimeoutError(
        str(pool_exhausted(error)),
        timeout=pool.timeout() if isinstance(pool, QueuePool) else None,
        pool_status=pool_status(pool),
    )


async def take_connection(
    session: AsyncSession, pool: Pool, timeout: float, *, used: float = 0.0
) -> None:
    """Acquire the session's connection within `timeout` seconds, or raise `PoolTimeoutError`.

    `used` is how many of these seconds have passed already.
    """
    try:
        async with asyncio.timeout(max(0.0, timeout - used)) as deadline:
            _ = await session.connection()
    except PoolError as error:
        raise pool_timed_out(pool, error) from error
    except TimeoutError as error:
        if deadline.expired():
            raise _not_in_time(pool, timeout) from error
        raise


def await_room(engine: Engine, timeout: float) -> None:
    """Wait, within SQLAlchemy's greenlet, until the engine's pool has a free connection.

    The connection is returned at once: no other task runs before the caller acquires it.
    """
    await_only(_checked_out(engine, timeout)).close()


async def _checked_out(engine: Engine, timeout: float) -> PoolProxiedConnection:
    try:
        async with asyncio.timeout(timeout) as deadline:
            return await greenlet_spawn(engine.raw_connection)
    except PoolError as error:
        raise pool_timed_out(engine.pool, error) from error
    except TimeoutError as error:
        if deadline.expired():
            raise _not_in_time(engine.pool, timeout) from error
        raise


def _not_in_time(pool: Pool, timeout: float) -> PoolTimeoutError:
    return PoolTimeoutError(
        f"No connection became free in the pool within {timeout:g} s: hold connections for a "
        "shorter time, or give the engine a larger pool_size or max_overflow.",
        timeout=timeout,
        pool_status=pool_status(pool),
    )
