"""Failed statements whose errors somebody swallowed.

After a failed statement PostgreSQL undoes a transaction but lets it stay open; COMMIT then
means ROLLBACK and reports no error (manual, COMMIT), and neither asyncpg nor SQLAlchemy looks.
"""

from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Engine, event, text
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.exceptions import AbortedTransactionError
from rowsignal.orm.locks.timeouts import IN_FAILED_TRANSACTION, sqlstate

_watched: WeakSet[Engine] = WeakSet()
# By dialect, which an engine shares with the copies that `execution_options` makes of it
_counts: WeakKeyDictionary[Dialect, int] = WeakKeyDictionary()


def failures(session: AsyncSession) -> int:
    """Return how many statements have failed on the session's engine since first asked."""
    bind = session.sync_session.bind
    if bind is None:
        return 0
    engine = bind.engine
    if engine not in _watched:
        _watched.add(engine)
        event.listen(engine, "handle_error", _count)
    return _counts.get(engine.dialect, 0)


async def refuse_aborted(session: AsyncSession, *, since: int) -> None:
    """Raise `AbortedTransactionError` when the session's open transaction can not commit.

    `since` is what `failures` said when the transaction began: while it has not moved, nothing
    is asked of the server. A failure inside a savepoint that was rolled back does no harm.
    """
    if failures(session) == since or not session.in_transaction():
        return
    try:
        await (await session.connection()).execute(text("select 1"))
    except DBAPIError as error:
        if sqlstate(error) != IN_FAILED_TRANSACTION:
            raise
        raise AbortedTransactionError(
            "Nothing was committed: a statement of this transaction failed, its error was "
            "caught, and PostgreSQL has undone all that the transaction did. Put a statement "
            "that may fail into `async with get_transaction(session):`, inside the `try`."
        ) from error


def _count(context: ExceptionContext) -> None:
    _counts[context.dialect] = _counts.get(context.dialect, 0) + 1
