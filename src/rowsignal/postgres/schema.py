"""The schema `rowsignal` in a database: which version it has, and bringing it up to date."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import overload

from sqlalchemy import Connection, text

from rowsignal.exceptions import SchemaVersionError
from rowsignal.postgres.binds import AsyncBind, SyncBind, SyncConnection, execute, run_on
from rowsignal.postgres.statements import migrations, query, read, split

CURRENT = max(number for number, _ in migrations())
LOCK_KEY = 8246779703540740722  # "rowsignal" in ASCII, as far as 64 bits go


def version(connection: Connection) -> int:
    """Return the version of the schema in this database, 0 where there is none."""
    # Not by to_regclass: it may answer from a cache that is older than the statement.
    if not connection.scalar(text(query("has_schema"))):
        return 0
    return connection.scalar(text("SELECT coalesce(max(version), 0) FROM rowsignal.migration")) or 0


def apply(connection: SyncConnection) -> list[str]:
    """Bring the schema to this library's version; return the names of the migrations applied.

    Runs in the caller's transaction and is safe to call from many processes at once. Raises
    `SchemaVersionError` when the database is newer than the library. An offline connection gets
    the script for an empty database.
    """
    if not isinstance(connection, Connection):
        return _run(connection, 0)
    if (found := version(connection)) < CURRENT:
        take_lock(connection)
        found = version(connection)
    if found > CURRENT:
        raise SchemaVersionError(
            f"Schema rowsignal is at version {found}, this library knows {CURRENT}:"
            " upgrade rowsignal."
        )
    return _run(connection, found)


def repair(connection: Connection) -> None:
    """Define everything of the current version again: functions that were changed by hand."""
    _run(connection, 0)


def take_lock(connection: Connection) -> None:
    """Wait for the turn to change our objects; it ends with the transaction.

    Asks again and again instead of queueing: a blocked `pg_advisory_xact_lock` would hold a
    snapshot, and with it back every CREATE INDEX CONCURRENTLY of the database.
    """
    ask = text("SELECT pg_try_advisory_xact_lock(:key) OR pg_sleep(0.02) IS NULL")
    while not connection.scalar(ask, {"key": LOCK_KEY}):
        pass


def migrate(connection: Connection, target: int = CURRENT) -> list[str]:
    """Bring the schema up or down to a version; return the names of the migrations run.

    Down takes away what later versions brought, with its data. Runs in the caller's transaction.
    """
    take_lock(connection)
    found = version(connection)
    down = [(number, name) for number, name in reversed(migrations()) if found >= number > target]
    for number, name in down:
        _execute(connection, f"migrations/{number:04}_{name}.down.sql")
    return [name for _, name in down] or _run(connection, found, target)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The version of the schema in a database (0: none) and the one this library wants."""

    version: int
    wanted: int

    @property
    def is_current(self) -> bool:
        """Tell whether they are the same."""
        return self.version == self.wanted


@overload
def schema_status(bind: AsyncBind) -> Awaitable[SchemaStatus]: ...
@overload
def schema_status(bind: SyncBind) -> SchemaStatus: ...
def schema_status(bind: AsyncBind | SyncBind) -> SchemaStatus | Awaitable[SchemaStatus]:
    """Return which version of the schema a database has; to be awaited for an async bind."""

    def work(connection: SyncConnection) -> SchemaStatus:
        if not isinstance(connection, Connection):
            raise TypeError("The status of the schema can not be asked offline.")
        return SchemaStatus(version(connection), CURRENT)

    return run_on(bind, work)


def _run(connection: SyncConnection, found: int, target: int = CURRENT) -> list[str]:
    up = [(number, name) for number, name in migrations() if found < number <= target]
    for number, name in up:
        _execute(connection, f"migrations/{number:04}_{name}.up.sql")
    return [name for _, name in up]


def _execute(connection: SyncConnection, file: str) -> None:
    for statement in split(read(file)):
        execute(connection, statement)
