"""Lock timeouts, and the errors of PostgreSQL that end a wait for a lock."""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.exceptions import DeadlockError, LockTimeoutError
from rowsignal.orm.sqlstates import DEADLOCK_DETECTED, LOCK_NOT_AVAILABLE, sqlstate

LONGEST_MS = 2**31 - 1

# The order in which a target list is evaluated is not promised; a materialized CTE comes first
EXCHANGE = text(
    "with former as materialized (select current_setting('lock_timeout') as value)"
    " select value, set_config('lock_timeout', :timeout, true) from former"
)
RESTORE = text("select set_config('lock_timeout', :former, true)")


@asynccontextmanager
async def lock_timeout(connection: AsyncConnection, limit: float | None) -> AsyncIterator[None]:
    """Limit each wait for a lock in the block to `limit` seconds, at least a millisecond.

    None keeps the limit in force. The former limit is restored after the block; if the block fails,
    the rollback that must follow restores it, to a savepoint or completely.
    """
    if limit is None:
        yield
        return
    # 0 would be no limit at all.
    milliseconds = min(max(1, math.ceil(limit * 1000)), LONGEST_MS)
    former = await connection.scalar(EXCHANGE, {"timeout": f"{milliseconds}ms"})
    yield
    await connection.execute(RESTORE, {"former": former})


@contextmanager
def typed_lock_errors(what: str, limit: float | None) -> Iterator[None]:
    """Raise `LockTimeoutError` and `DeadlockError` for PostgreSQL's errors; `what` is the lock."""
    try:
        yield
    except DBAPIError as error:
        state = sqlstate(error)
        if state == LOCK_NOT_AVAILABLE:
            raise lock_timed_out(what, limit) from error
        if state == DEADLOCK_DETECTED:
            raise DeadlockError(
                f"The lock on {what} was refused: its holder waits for a lock of this "
                "transaction. Take locks in the same order everywhere, and try again."
            ) from error
        raise


def lock_timed_out(what: str, limit: float | None) -> LockTimeoutError:
    """Return the error that names the lock and the time."""
    after = "the server's lock_timeout" if limit is None else f"{limit:g} s"
    return LockTimeoutError(
        f"The lock on {what} was not granted within {after}: another transaction holds it. "
        "Try again, or wait longer with `timeout=`."
    )
