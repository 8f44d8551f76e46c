"""The connection of a session: acquiring it from the pool, and keeping it."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from sqlalchemy import Connection, event, exc
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, SessionTransaction

from rowsignal.exceptions import PoolExhaustedError

T = TypeVar("T")


def pool_exhausted(error: exc.TimeoutError) -> PoolExhaustedError:
    """Return the error for a pool without a free connection."""
    return PoolExhaustedError(
        f"No connection became free in the pool in time ({error}). Hold connections for a "
        "shorter time, or give the engine a larger pool_size or max_overflow."
    )


async def connection_of(session: AsyncSession) -> AsyncConnection:
    """Return the connection of the session's transaction; begin one if there is none.

    Raises `PoolExhaustedError` if the pool has no free connection.
    """
    try:
        return await session.connection()
    except exc.TimeoutError as error:
        raise pool_exhausted(error) from error


@asynccontextmanager
async def pinned(session: AsyncSession) -> AsyncIterator[AsyncConnection]:
    """Keep a session on one connection until the block ends, across commits and rollbacks.

    A session returns its connection with every commit and rollback, and with it everything that
    belongs to the connection. Within the block all its transactions run on the same connection;
    after the block the connection is returned with the transaction that is then open.
    """
    connection = await connection_of(session)
    sync_session, pin = session.sync_session, connection.sync_connection
    if pin is None or sync_session.bind is pin:
        # Bound to a connection by the caller or by an outer block, which keeps it
        yield connection
        return
    first, bind = sync_session.get_transaction(), sync_session.bind
    # A session closes its connection after a transaction; a no-op in place of `close` holds it
    vars(pin)["close"] = _stay_open
    sync_session.bind = pin
    try:
        yield connection
    finally:
        sync_session.bind = bind
        del vars(pin)["close"]
        if not sync_session.in_transaction():
            await run_to_completion(connection.close())
        elif sync_session.get_transaction() is not first:
            _close_after_transaction(sync_session, pin)


async def run_to_completion(work: Coroutine[Any, Any, T]) -> T:
    """Finish work even if the task is cancelled meanwhile; then raise the cancellation.

    Cleanup of a connection must be finished before another task uses it.
    """
    task = asyncio.ensure_future(work)
    cancellation: asyncio.CancelledError | None = None
    # Each further cancellation ends a wait, not the work.
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancellation = error
    if cancellation is not None:
        # Read, or asyncio logs that it never was; the cancellation is what is raised.
        task.exception()
        raise cancellation
    return task.result()


def _stay_open() -> None:
    pass


def _close_after_transaction(session: Session, connection: Connection) -> None:
    def close(_: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            connection.close()

    # Begun while the session was bound to the connection, so the session will not close it
    event.listen(session, "after_transaction_end", close)
