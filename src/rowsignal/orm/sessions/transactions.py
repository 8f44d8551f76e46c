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
    """Make a session one transaction, which its end commits: each `get_transaction` a savepoint.

    The session says that it is in a transaction before the first statement begins one, so that
    helpers of other libraries take savepoints, too; `session.begin()` is possible all the same.
    Its commits raise `AbortedTransactionError` where PostgreSQL has undone the transaction.
    """
    if not event.contains(Session, "before_commit", _before_commit):
        event.listen(Session, "before_commit", _before_commit)
    _whole.add(session.sync_session)
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
    (PostgreSQL manual, SAVEPOINT): an exception undoes the block alone, and what succeeded is
    committed with the whole request or context, or lost with it.

    In any other session the block begins a transaction, and commits it, only where none is open.
    **A session is in a transaction from its first statement on, a read included**: after that
    the block is a savepoint, and its work needs `await session.commit()`.

    Raises `AbortedTransactionError` instead of committing what PostgreSQL has already undone
    because a failed statement's error was caught inside the block.
    """
    if session.in_transaction() or session.sync_session in _whole:
        async with session.begin_nested():
            yield session
    else:
        async with session.begin():
            yield session
            await session.run_sync(refuse_aborted)


def _before_commit(session: Session) -> None:
    """Let no commit of a whole session pass that PostgreSQL answers with ROLLBACK.

    Listening at the class costs less than at each session; other sessions are left alone.
    """
    if session in _whole and not session.in_nested_transaction():
        refuse_aborted(session)


transaction = get_transaction
