"""How a session ends: committed or rolled back, its connection given back, never used again."""

from typing import NoReturn

from sqlalchemy import event
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IllegalStateChangeError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import SessionTransaction, SessionTransactionOrigin

from rowsignal.exceptions import MissingSessionError, SessionInUseError
from rowsignal.orm.sessions.aborted import refuse_aborted
from rowsignal.orm.sessions.connections import settle

ENDED = (
    "This session has ended with its request or its `async with db()` block. A streaming body, "
    "a background task or a task that outlives the block opens one of its own: "
    "`async with db(): ...`"
)
IN_USE = (
    "A task was still running a statement on this session when its request or block ended: "
    "nothing was committed. Await your tasks, or give them sessions of their own."
)


def refuse(*_: object, **__: object) -> NoReturn:
    """Raise what somebody gets who uses a session after its end."""
    raise MissingSessionError(ENDED)


def retire(session: AsyncSession) -> None:
    """Make every later statement on the session, whoever kept it, a `MissingSessionError`.

    SQLAlchemy itself would begin anew and leave a connection out that nobody gives back.
    """
    session.sync_session.get_bind = refuse  # type: ignore[method-assign] # shadows it for one object


def is_begun(session: AsyncSession) -> bool:
    """Tell whether a transaction is open that the program began by `session.begin()`."""
    transaction = session.sync_session.get_transaction()
    return transaction is not None and transaction.origin is SessionTransactionOrigin.BEGIN


def connections_of(session: AsyncSession) -> list[Connection]:
    """List the connections that the session holds now."""
    transaction = session.sync_session.get_transaction()
    if transaction is None:
        return []
    return [entry[0] for entry in set(transaction._connections.values())]


def _is_busy(connection: Connection) -> bool:
    if connection.closed or connection.invalidated:
        return False
    # Only the driver's adapter knows: a commit beside a statement in flight can pass as a commit
    # of nothing, and the pool then gets a connection in the middle of its BEGIN.
    mutex = getattr(connection.connection.dbapi_connection, "_execute_mutex", None)
    return mutex is not None and mutex.locked()


async def end(session: AsyncSession, *, commit: bool, since: int = 0) -> None:
    """Commit or roll back, give the connection back, and retire the session.

    Whatever fails, and wherever a cancellation strikes, the connection is back in the pool or
    closed when this returns. A rollback that fails for a lost connection is silent: the server
    has rolled back.

    `since` is what `failures` said when the session was made.

    Raises what the commit raised; `AbortedTransactionError` when a failed statement has left
    nothing to commit; `SessionInUseError` when another task has a statement in flight, in which
    case nothing is committed.
    """
    transaction = session.sync_session.get_transaction()
    if transaction is None and not commit:
        session.sync_session.close()
        retire(session)
        return
    if any(_is_busy(connection) for connection in connections_of(session)):
        await settle(_abandon(session, transaction))
        if not commit:
            return
        raise SessionInUseError(IN_USE)
    try:
        if commit:
            await refuse_aborted(session, since=since)
            await session.commit()
            session.sync_session.close()
    except BaseException:
        await settle(_abandon(session, transaction))
        raise
    if not commit:
        await settle(_abandon(session, transaction))
    retire(session)


async def _abandon(session: AsyncSession, transaction: SessionTransaction | None) -> None:
    is_busy = any(_is_busy(connection) for connection in connections_of(session))
    retire(session)
    try:
        if not is_busy:
            await session.close()
            return
    except IllegalStateChangeError:
        # Another task is fetching its first connection: it is turned away as soon as it has it.
        event.listen(session.sync_session, "after_begin", _turn_away)
        return
    except SQLAlchemyError:
        pass
    if transaction is not None:
        await session.run_sync(lambda _: transaction.close(invalidate=True))


def _turn_away(session: object, transaction: object, connection: Connection) -> NoReturn:
    connection.close()
    refuse(session, transaction)
