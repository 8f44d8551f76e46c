"""Transactions that nest."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.orm.sessions.aborted import failures, refuse_aborted

S = TypeVar("S", bound=AsyncSession)


@asynccontextmanager
async def get_transaction(session: S) -> AsyncIterator[S]:
    """Run a block as a transaction, or as a savepoint of the one that is open.

        async with get_transaction(session):
            session.add(order)

    **A session is in a transaction from its first statement on, a read included.** Only without
    one does the block begin a transaction and commit it at its end. Otherwise the block is a
    savepoint (PostgreSQL manual, SAVEPOINT): an exception undoes the block alone, success
    commits nothing, and closing the session without a commit loses the block's work too. The
    sessions of `create_db_dependency` and `create_db_context` are committed for you; any other
    needs `await session.commit()`.

    Raises `AbortedTransactionError` instead of committing what PostgreSQL has already undone
    because a failed statement's error was caught inside the block.
    """
    if session.in_transaction():
        async with session.begin_nested():
            yield session
    else:
        async with session.begin():
            since = failures(session)
            yield session
            await refuse_aborted(session, since=since)


transaction = get_transaction
