"""The end of a session: commit or rollback, and the return of its connection."""

from typing import NoReturn

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IllegalStateChangeError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import SessionTransaction, SessionTransactionOrigin

from rowsignal.exceptions import MissingSessionError, SessionInUseError
from rowsignal.orm.sessions.aborted import connections_of
from rowsignal.orm.sessions.connections import run_to_completion

ENDED = (
    "This session has ended with its request or its `async with db()` block. A streaming body, "
    "an endpoint that yields, a background task or a task that outlives the block opens one of "
    "its own: `async with db(): ...`, or a context of create_db_context."
)
IN_USE = (
    "A task was still running a statement on this session when its request or block ended: "
    "nothing was committed. Await your tasks, or give them sessions of their own."
)


def refuse(*_: object, **__: object) -> NoReturn:
    """Raise the error for the use of a session after its end."""
    raise MissingSessionError(ENDED)


def retire(session: AsyncSession) -> None:
    """Make every later statement on the session a `MissingSessionError`.

    SQLAlchemy itself would begin anew and acquire a connection that no code returns.
    """
    session.sync_session.get_bind = refuse  # type: ignore[method-assign] # shadows it for one object
    vars(session).pop("in_transaction", None)  # see make_whole


def is_begun(session: AsyncSession) -> bool:
    """Tell whether a transaction is open that the program began by `session.begin()`."""
    transaction = session.sync_session.get_transaction()
    return transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN


def _is_busy(connection: Connection) -> bool:
    if connection.closed or connection.invalidated:
        return False
    # Only the driver's adapter knows: a commit during a statement in flight can succeed without
    # effect, and the pool then gets a connection in the middle of its BEGIN.
    mutex = getattr(connection.connection.dbapi_connection, "_execute_mutex", None)
    return mutex is not None and mutex.locked()


async def end(session: AsyncSession, *, commit: bool) -> None:
    """Commit or roll back, return the connection, close and retire the session.

    After any failure or cancellation the connection is back in the pool or closed when this
    returns. A rollback that fails because the connection is lost is ignored: the server has rolled
    back. Overrides of `rollback` and `close` in the session class are called.

    Raises the error of the commit; `AbortedTransactionError` if a failed statement has left nothing
    to commit; `SessionInUseError` if another task has a statement in flight, in which case nothing
    is committed.
    """
    transaction = session.sync_session.get_transaction()
    # Nothing was begun: no statement is sent, and no connection is needed.
    if transaction is None and not (commit and session.sync_session.autobegin):
        await _close(session)
        retire(session)
        return
    if any(_is_busy(connection) for connection in connections_of(session)):
        # A cancellation here would leave the connection with its transaction out of the pool.
        await run_to_completion(_abandon(session, transaction))
        if not commit:
            return
        raise SessionInUseError(IN_USE)
    if not commit:
        await run_to_completion(_abandon(session, transaction))
        return
    try:
        await session.commit()
    except BaseException:
        await run_to_completion(_abandon(session, transaction))
        raise
    await _close(session)
    retire(session)


async def _close(session: AsyncSession) -> None:
    """Close a session after its commit, which may have begun another transaction."""
    # SQLAlchemy's own close sends nothing after a commit: a call in this task is enough.
    if _overrides(session, "close") or session.sync_session.in_transaction():
        await run_to_completion(_close_by_override(session))
    else:
        session.sync_session.close()


async def _close_by_override(session: AsyncSession) -> None:
    try:
        await session.close()
    finally:
        # An override may fail, or not call this.
        await AsyncSession.close(session)


async def _abandon(session: AsyncSession, transaction: SessionTransaction | None) -> None:
    is_busy = any(_is_busy(connection) for connection in connections_of(session))
    if not is_busy and await _is_rolled_back(session, has_begun=transaction is not None):
        return
    retire(session)
    if transaction is not None:
        # The server rolls back when the connection ends; a rollback could wait for the statement.
        await session.run_sync(lambda _: transaction.close(invalidate=True))


async def _is_rolled_back(session: AsyncSession, *, has_begun: bool) -> bool:
    """Roll back and close; return False if the connection failed."""
    try:
        await _roll_back(session, has_begun=has_begun)
    except IllegalStateChangeError:
        # Another task is acquiring its first connection: it gets an error once it has it.
        event.listen(session.sync_session, "after_begin", _turn_away)
    except SQLAlchemyError:
        return False
    return True


async def _roll_back(session: AsyncSession, *, has_begun: bool) -> None:
    try:
        if has_begun and _overrides(session, "rollback"):
            await session.rollback()
        if _overrides(session, "close"):
            await session.close()
    finally:
        retire(session)
        await AsyncSession.close(session)


def _overrides(session: AsyncSession, name: str) -> bool:
    """Tell whether a session's class has its own version of one of SQLAlchemy's methods."""
    return getattr(type(session), name) is not getattr(AsyncSession, name)


def _turn_away(session: object, transaction: object, connection: Connection) -> NoReturn:
    connection.close()
    refuse(session, transaction)
