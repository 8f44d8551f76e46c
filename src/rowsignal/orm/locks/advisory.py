"""Advisory locks (PostgreSQL manual, 13.3.5 and 9.28.10)."""

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from rowsignal.exceptions import LockLostError, LockTimeoutError
from rowsignal.orm.locks.durations import Duration, seconds
from rowsignal.orm.locks.timeouts import (
    lock_timed_out,
    lock_timeout,
    typed_lock_errors,
)
from rowsignal.orm.sessions.connections import connection_of, pinned, run_to_completion

Key = int | str | tuple[int, int]

# A waiting statement holds a snapshot, which CREATE INDEX CONCURRENTLY waits for: not too long.
# Yet longer than deadlock_timeout (1 s), or PostgreSQL would never find a deadlock
WAIT_SLICE = 2.0


@asynccontextmanager
async def advisory_lock(
    session: AsyncSession,
    key: Key,
    *,
    shared: bool = False,
    nowait: bool = False,
    xact: bool = False,
    timeout: Duration | None = None,
) -> AsyncIterator[bool]:
    """Hold an advisory lock during a block; yield whether it was acquired.

        async with advisory_lock(session, "invoices:2026", nowait=True) as acquired:
            if not acquired:
                raise HTTPException(409)

    `key` is a 64-bit integer, a pair of 32-bit integers, or text, which stands for the first
    8 bytes of its UTF-8 form's SHA-256 as a signed big-endian integer, in SQL:
    `('x' || encode(substr(sha256(convert_to(key, 'UTF8')), 1, 8), 'hex'))::bit(64)::bigint`.
    Without `nowait` the call waits for a lock that is held, up to `timeout` (seconds, a timedelta,
    or text such as "500ms") if it is given.

    The lock belongs to the session's own connection, which the session keeps for the whole block,
    across commits and rollbacks. It is released at the end of the block even if the block has
    failed: an aborted transaction is rolled back to its innermost savepoint first, and a connection
    that cannot be unlocked is closed. With `xact` the lock stays until the transaction ends, and
    the end of the block releases nothing.

    Raises `LockTimeoutError`, `DeadlockError`, `PoolExhaustedError`, and `LockLostError` if the
    connection, and with it the lock, was lost during the block.
    """
    lock = AdvisoryLock(key, shared=shared, xact=xact)
    limit = None if timeout is None else seconds(timeout)
    if xact:
        yield await lock.acquire(await connection_of(session), nowait=nowait, limit=limit)
        return
    async with pinned(session) as connection:
        if not await lock.acquire(connection, nowait=nowait, limit=limit):
            yield False
            return
        try:
            yield True
        except BaseException:
            await run_to_completion(_release(session, connection, lock))
            raise
        if not await run_to_completion(_release(session, connection, lock)):
            raise LockLostError(
                f"{lock} was lost during the block, with its connection: another session may "
                "have held it meanwhile. Do the block's work again."
            )


class AdvisoryLock:
    """One advisory lock: its key, and how it is held."""

    def __init__(self, key: Key, *, shared: bool, xact: bool) -> None:
        self.key = key
        self.numbers = lock_numbers(key)
        self.types = ("bigint",) if len(self.numbers) == 1 else ("integer", "integer")
        self.scope = "_xact" if xact else ""
        self.suffix = "_shared" if shared else ""

    def __str__(self) -> str:
        return f"The advisory lock {self.key!r}"

    async def acquire(
        self, connection: AsyncConnection, *, nowait: bool, limit: float | None
    ) -> bool:
        """Take the lock; return False if `nowait` is set and it is held."""
        # Free most of the time: tried first, without a savepoint and a timeout.
        if await self._call(connection, f"pg_try_advisory{self.scope}_lock{self.suffix}"):
            return True
        if nowait:
            return False
        deadline = None if limit is None else monotonic() + limit
        while not await self._wait(connection, deadline):
            if deadline is not None and monotonic() >= deadline:
                raise lock_timed_out(f"the key {self.key!r}", limit)
        return True

    async def release(self, connection: AsyncConnection) -> bool:
        """Release the lock; return False if this connection did not hold it."""
        begins = not connection.in_transaction()
        held = await self._call(connection, f"pg_advisory_unlock{self.suffix}")
        # The release began a transaction of its own, with nothing in it.
        if begins:
            await connection.rollback()
        return held

    async def _wait(self, connection: AsyncConnection, deadline: float | None) -> bool:
        remaining = WAIT_SLICE if deadline is None else max(0.0, deadline - monotonic())
        try:
            # A savepoint, because a lock timeout is an error, which would abort the transaction
            async with (
                connection.begin_nested(),
                lock_timeout(connection, min(remaining, WAIT_SLICE)),
            ):
                with typed_lock_errors(f"the key {self.key!r}", remaining):
                    await self._call(connection, f"pg_advisory{self.scope}_lock{self.suffix}")
        except LockTimeoutError:
            return False
        return True

    async def _call(self, connection: AsyncConnection, function: str) -> bool:
        names = ", ".join(f"cast(:k{at} as {kind})" for at, kind in enumerate(self.types))
        numbers = {f"k{at}": number for at, number in enumerate(self.numbers)}
        return bool(await connection.scalar(text(f"select {function}({names})"), numbers))


def lock_numbers(key: Key) -> tuple[int, ...]:
    """Return a key as the one or two integers of PostgreSQL's functions.

    >>> lock_numbers("invoices:2026")
    (-7577478050152989830,)
    """
    if isinstance(key, str):
        digest = hashlib.sha256(key.encode()).digest()
        return (int.from_bytes(digest[:8], "big", signed=True),)
    numbers = key if isinstance(key, tuple) else (key,)
    bits = 64 if len(numbers) == 1 else 32
    if len(numbers) not in (1, 2) or {type(number) for number in numbers} != {int}:
        raise TypeError(f"{key!r} is not a lock's key: give an int, a pair of ints, or text.")
    if any(not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1) for number in numbers):
        raise ValueError(f"{key!r} does not fit into {bits} bits. Text of any length does.")
    return numbers


async def _release(session: AsyncSession, connection: AsyncConnection, lock: AdvisoryLock) -> bool:
    if connection.closed or connection.invalidated:
        return False
    try:
        return await lock.release(connection)
    except (DBAPIError, InvalidRequestError):
        pass
    try:
        # Aborted: PostgreSQL accepts only a rollback, which is all the caller could do too
        await _roll_back(session, connection)
        return await lock.release(connection)
    except (DBAPIError, InvalidRequestError) as error:
        await connection.invalidate(error)
        return False


async def _roll_back(session: AsyncSession, connection: AsyncConnection) -> None:
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is not None:
        await transaction.rollback()
    else:
        await connection.rollback()
