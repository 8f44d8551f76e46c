"""Locks on tables (PostgreSQL manual, 13.3.1 and LOCK)."""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from typing import Any, TypeVar

from sqlalchemy import ClauseElement, Executable, FromClause, Table
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from rowsignal.orm.locks.durations import Duration, seconds
from rowsignal.orm.locks.table_lists import describe, render, tables_of
from rowsignal.orm.locks.timeouts import lock_timeout, typed_lock_errors
from rowsignal.orm.sessions.connections import connection_of
from rowsignal.orm.sessions.transactions import get_transaction

S = TypeVar("S", bound=AsyncSession)


class LockMode(StrEnum):
    """A lock mode of tables; the manual's table 13.2 says which modes conflict.

    `LockMode("ROW EXCLUSIVE")` and `LockMode("row_exclusive")` are the same.
    """

    ACCESS_SHARE = "ACCESS SHARE"
    ROW_SHARE = "ROW SHARE"
    ROW_EXCLUSIVE = "ROW EXCLUSIVE"
    SHARE_UPDATE_EXCLUSIVE = "SHARE UPDATE EXCLUSIVE"
    SHARE = "SHARE"
    SHARE_ROW_EXCLUSIVE = "SHARE ROW EXCLUSIVE"
    EXCLUSIVE = "EXCLUSIVE"
    ACCESS_EXCLUSIVE = "ACCESS EXCLUSIVE"

    @classmethod
    def _missing_(cls, value: object) -> "LockMode":
        mode = cls.__members__.get("_".join(str(value).upper().replace("_", " ").split()))
        if mode is None:
            raise ValueError(f"{value!r} is not a lock mode: use one of {', '.join(cls)}.")
        return mode


@asynccontextmanager
async def lock_tables(
    owner: S | async_sessionmaker[S] | None = None,
    tables: Iterable[type[Any] | FromClause] = (),
    *,
    mode: LockMode | str = LockMode.SHARE_UPDATE_EXCLUSIVE,
    timeout: Duration | None = "5s",
    session: S | async_sessionmaker[S] | None = None,
    session_maker: async_sessionmaker[S] | None = None,
) -> AsyncIterator[S]:
    """Lock tables, and yield the session whose transaction holds the locks.

        async with lock_tables(session, [Order, Item], mode=LockMode.EXCLUSIVE):
            ...

    With a session the block is a `get_transaction`. **PostgreSQL keeps a table lock until the
    transaction ends**: if one was open already, the locks outlive the block, until the caller
    commits or the request ends. With an `async_sessionmaker` the block gets a new session and
    transaction, and the locks end with the block. Either is the first argument, or a keyword:
    `session=` or `session_maker=`.

    All tables are locked in one statement and in one order, so two calls never deadlock with
    each other. `timeout` is seconds, a timedelta or text such as "500ms", for each table; None
    keeps the server's limit. The caller's `lock_timeout` is restored before the block runs.

    Raises `LockTimeoutError` and `DeadlockError`, which leave an open transaction usable,
    `PoolExhaustedError`, `TypeError` and `ValueError`.
    """
    owners = [one for one in (owner, session, session_maker) if one is not None]
    if len(owners) != 1:
        raise TypeError("lock_tables needs a session or a session_maker, and not both.")
    statement = LockTables(tables_of(tables), LockMode(mode))
    limit = None if timeout is None else seconds(timeout)
    async with _transaction(owners[0]) as own:
        connection = await connection_of(own)
        with typed_lock_errors(describe(statement.tables), limit):
            # Only around the statement: the block's own statements keep the limit of the caller.
            async with lock_timeout(connection, limit):
                await own.execute(statement)
        yield own


class LockTables(Executable, ClauseElement):
    """A LOCK statement."""

    inherit_cache = False

    def __init__(self, tables: list[Table], mode: LockMode) -> None:
        self.tables = tables
        self.mode = mode


@compiles(LockTables)
def _lock(statement: LockTables, compiler: SQLCompiler, **_: Any) -> str:
    return f"LOCK TABLE {render(compiler, statement.tables)} IN {statement.mode} MODE"


@asynccontextmanager
async def _transaction(owner: S | async_sessionmaker[S]) -> AsyncIterator[S]:
    if isinstance(owner, async_sessionmaker):
        async with owner() as session, get_transaction(session):
            yield session
    else:
        async with get_transaction(owner):
            yield owner
