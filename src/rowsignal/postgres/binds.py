"""One function for every kind of bind: engines, connections, sessions, sync and async."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_mock_engine
from sqlalchemy.engine.mock import MockConnection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.ddl import ExecutableDDLElement

AsyncBind = AsyncEngine | AsyncConnection | AsyncSession
SyncBind = Engine | Connection | Session | MockConnection
SyncConnection = Connection | MockConnection
Result = TypeVar("Result")

IN_TRANSACTION: dict[str, Any] = {"isolation_level": "READ COMMITTED"}  # not AUTOCOMMIT


class Statement(ExecutableDDLElement):
    """SQL text, sent or written to an offline script without changes."""

    inherit_cache = False

    def __init__(self, sql: str, *, is_offline: bool = False) -> None:
        self.sql = sql
        self.is_offline = is_offline


@compiles(Statement)
def _text(statement: Statement, compiler: Any, **_: object) -> str:
    # Drivers with %-parameters halve a doubled sign before the server sees it.
    if not statement.is_offline and getattr(compiler.preparer, "_double_percents", False):
        return statement.sql.replace("%", "%%")
    return statement.sql


def execute(connection: SyncConnection, sql: str) -> None:
    """Run a statement, or write it to the script of an offline connection."""
    connection.execute(Statement(sql, is_offline=not isinstance(connection, Connection)))


def run_on(
    bind: AsyncBind | SyncBind, work: Callable[[SyncConnection], Result]
) -> Result | Awaitable[Result]:
    """Run `work` with a connection of `bind`; the result is awaitable for an async bind.

    With an engine it runs in a new transaction, committed at the end, also in AUTOCOMMIT. With a
    connection or session it runs in the caller's transaction, which is never committed here.
    """
    if isinstance(bind, Engine | AsyncEngine) and bind.dialect.name != "postgresql":
        raise ValueError(f"rowsignal works with PostgreSQL, not with {bind.dialect.name}.")
    if isinstance(bind, AsyncEngine | AsyncConnection | AsyncSession):
        return _run_async(bind, work)
    if isinstance(bind, Engine):
        with bind.connect() as connection:
            ours = connection.execution_options(**IN_TRANSACTION)
            with ours.begin():
                return work(ours)
    if isinstance(bind, Session):
        return work(bind.connection())
    return work(bind)


async def _run_async(bind: AsyncBind, work: Callable[[SyncConnection], Result]) -> Result:
    if isinstance(bind, AsyncEngine):
        async with bind.connect() as connection:
            ours = await connection.execution_options(**IN_TRANSACTION)
            async with ours.begin():
                return await ours.run_sync(work)
    if isinstance(bind, AsyncSession):
        bind = await bind.connection()
    return await bind.run_sync(work)


def record(work: Callable[[MockConnection], object]) -> str:
    """Return the script that `work` would run, statement by statement."""
    statements: list[str] = []

    def note(statement: Statement, *_: object) -> None:
        statements.append(statement.sql)

    work(create_mock_engine("postgresql+asyncpg://", note))
    return "".join(f"{statement};\n" for statement in statements)
