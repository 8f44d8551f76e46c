"""Emptying all tables of a program at once."""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import ClauseElement, Executable, FromClause, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler

from rowsignal.orm.locks.durations import Duration, seconds
from rowsignal.orm.locks.table_lists import describe, render, tables_of
from rowsignal.orm.locks.timeouts import lock_timeout, typed_lock_errors
from rowsignal.orm.sessions.connections import connection_of


async def cleanup_tables(
    session: AsyncSession,
    base: type[DeclarativeBase] | MetaData,
    *,
    exclude: Iterable[type[Any] | FromClause | str] = (),
    timeout: Duration | None = "5s",
) -> None:
    """Empty all tables of a declarative base, and restart their sequences.

        await cleanup_tables(session, Base, exclude=["countries"])

    It is one TRUNCATE ... RESTART IDENTITY CASCADE in a new transaction on the session's
    connection: uncommitted changes of the session are rolled back, and its instances are expunged,
    since their rows are gone. `exclude` names tables to leave alone by model, `Table`, or name
    (with the schema if the table has one). Without tables it does nothing.

    Raises `LockTimeoutError` if a table is in use for longer than `timeout` (seconds, a
    timedelta, or text), and `ValueError` for an unknown name in `exclude` and for an excluded
    table that CASCADE would empty, because it references one that is not excluded.
    """
    metadata = base if isinstance(base, MetaData) else base.metadata
    tables = _chosen(metadata, exclude)
    if not tables:
        return
    limit = None if timeout is None else seconds(timeout)
    await session.rollback()
    session.expunge_all()
    async with session.begin():
        connection = await connection_of(session)
        with typed_lock_errors(describe(tables), limit):
            async with lock_timeout(connection, limit):
                await session.execute(TruncateTables(tables))


class TruncateTables(Executable, ClauseElement):
    """A TRUNCATE statement."""

    inherit_cache = False

    def __init__(self, tables: list[Table]) -> None:
        self.tables = tables


@compiles(TruncateTables)
def _truncate(statement: TruncateTables, compiler: SQLCompiler, **_: Any) -> str:
    return f"TRUNCATE TABLE {render(compiler, statement.tables)} RESTART IDENTITY CASCADE"


def _chosen(metadata: MetaData, exclude: Iterable[type[Any] | FromClause | str]) -> list[Table]:
    excluded = {table for entity in exclude for table in _excluded(metadata, entity)}
    chosen = [table for table in metadata.tables.values() if table not in excluded]
    for table in excluded:
        _refuse_reference(table, chosen)
    return chosen


def _excluded(metadata: MetaData, entity: type[Any] | FromClause | str) -> list[Table]:
    if not isinstance(entity, str):
        return tables_of([entity])
    if entity not in metadata.tables:
        raise ValueError(f"{entity!r} is none of the tables {', '.join(metadata.tables)}.")
    return [metadata.tables[entity]]


def _refuse_reference(excluded: Table, chosen: Collection[Table]) -> None:
    for key in excluded.foreign_keys:
        if key.column.table in chosen:
            raise ValueError(
                f"{excluded} cannot be left out: it references {key.column.table}, and "
                "CASCADE would empty it too. Exclude both, or neither."
            )
