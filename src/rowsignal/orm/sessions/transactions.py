"""Transactions that nest."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar
from weakref import WeakSet

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from rowsignal.orm.sessions.aborted import refuse_aborted

S = TypeVar("S", bound=AsyncSession)

_whole: WeakSet[Session] = WeakSet()


def make_whole(session: AsyncSession) -> None:
    """Make a session one transaction, committed at its end, with savepoints inside.

    The session reports a transaction before the first statement begins one, so that helpers of
    other libraries use savepoints, too; `session.begin()` is still possible. Its commits raise
    `AbortedTransactionError` if PostgreSQL has undone the transaction.
    """
    if not event.contains(Session, "before_commit", _before_commit):
        event.listen(Session, "before_commit", _before_commit)
    _whole.add(session.sync_session)
    # Without autobegin the program begins transactions itself, and asks whether it has.
    if session.sync_session.autobegin:
        session.in_transaction = _is_whole  # type: ignore[method-assign] # for one object


def _is_whole() -> bool:
    return True


@asynccontextmanager
async def get_transaction(session: S) -> AsyncIterator[S]:
    """Run a block as a transaction, or as a savepoint of the one that is open.

        async with get_transaction(session):
            session.add(order)

    In the session of a request or of `create_db_context` the block is always a savepoint
    (PostgreSQL manual, SAVEPOINT): an exception undoes only the block, and the changes of a block
    that succeeded are committed or lost with the whole request or context.

    In any other session the block begins and commits a transaction only if none is open.
    **A session is in a transaction from its first statement on, a read included**: after that
    the block is a savepoint, and its work needs `await session.commit()`.

    Raises `AbortedTransactionError` instead of a commit if PostgreSQL has already undone the
    transaction, because the error of a failed statement was caught inside the block.
    """
    if session.in_transaction() or session.sync_session in _whole:
        async with session.begin_nested():
            yield session
    else:
        async with session.begin():
            yield session
            # Before the commit at the end of `begin()`, which PostgreSQL would answer with
            # ROLLBACK.
            await session.run_sync(refuse_aborted)


def _before_commit(session: Session) -> None:
    """Refuse commits of an aborted transaction in sessions that are one transaction.

    One listener at the class costs less than one per session; other sessions are not affected.
    """
    if session in _whole and not session.in_nested_transaction():
        refuse_aborted(session)


transaction = get_transaction
