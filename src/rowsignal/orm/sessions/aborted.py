"""Detection of commits that PostgreSQL answers with ROLLBACK.

After a failed statement PostgreSQL undoes the transaction but keeps it open; COMMIT then rolls back
and reports no error (manual, COMMIT). Only the command tag of the response shows it, which neither
asyncpg nor SQLAlchemy reads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from rowsignal.exceptions import AbortedTransactionError
from rowsignal.orm.sqlstates import IN_FAILED_TRANSACTION, sqlstate

ABORTED = (
    "Nothing was committed: a statement of this transaction failed, its error was caught, and "
    "PostgreSQL has undone all that the transaction did. Put a statement that may fail into "
    "`async with get_transaction(session):`, inside the `try`."
)
# psycopg's TransactionStatus, which is libpq's
IN_ERROR = 3


def connections_of(session: AsyncSession | Session) -> list[Connection]:
    """List the connections that the session holds now."""
    sync_session = session if isinstance(session, Session) else session.sync_session
    transaction = sync_session.get_transaction()
    if transaction is None:
        return []
    return [entry[0] for entry in set(transaction._connections.values())]


def refuse_aborted(session: Session) -> None:
    """Raise `AbortedTransactionError` for an aborted transaction, now or from its commit.

    With asyncpg it sends no statement: it reads the response to the commit itself.
    """
    for connection in connections_of(session):
        if connection.dialect.name == "postgresql" and not connection.closed:
            _check(connection)


@contextmanager
def typed_aborted_errors() -> Iterator[None]:
    """Raise `AbortedTransactionError` if PostgreSQL accepts only a rollback."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) != IN_FAILED_TRANSACTION:
            raise
        raise AbortedTransactionError(ABORTED) from error


def _check(connection: Connection) -> None:
    if connection.invalidated:
        return  # the commit fails by itself
    adapter: Any = connection.connection.dbapi_connection
    # asyncpg: the tag of the response to COMMIT tells, without another statement.
    if hasattr(adapter, "_transaction"):
        _read_tag(adapter._transaction)
        return
    status = _status(adapter)
    if status == IN_ERROR:
        raise AbortedTransactionError(ABORTED)
    # The driver does not tell: PostgreSQL refuses any statement of an aborted transaction.
    if status is None:
        with typed_aborted_errors():
            connection.execute(text("select 1"))


def _read_tag(transaction: Any) -> None:
    """Put a `TagReader` into asyncpg's transaction, if one has begun."""
    if transaction is not None and not isinstance(transaction._connection, TagReader):
        transaction._connection = TagReader(transaction._connection)


def _status(adapter: Any) -> int | None:
    """Return the state of a psycopg connection's transaction; None for other drivers."""
    info = getattr(getattr(adapter, "driver_connection", None), "info", None)
    status = getattr(info, "transaction_status", None)
    return None if status is None else int(status)


class TagReader:
    """Wraps asyncpg's connection while its transaction commits, and reads the command tag."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Any) -> None:
        object.__setattr__(self, "_connection", connection)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._connection, name, value)

    async def execute(self, query: str) -> str:
        """Run the statement that ends the transaction."""
        tag: str = await self._connection.execute(query)
        if query.startswith("COMMIT") and tag == "ROLLBACK":
            raise AbortedTransactionError(ABORTED)
        return tag
