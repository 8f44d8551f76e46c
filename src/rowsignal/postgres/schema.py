"""The schema `rowsignal` in a database: its version and its migrations."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import overload

from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from rowsignal.exceptions import MissingRightError, SchemaVersionError
from rowsignal.postgres import integrity
from rowsignal.postgres.binds import AsyncBind, SyncBind, SyncConnection, execute, run_on
from rowsignal.postgres.errors import sqlstate
from rowsignal.postgres.ownership import check_owner
from rowsignal.postgres.statements import migrations, query, read, split

CURRENT = max(number for number, _ in migrations())

CREATED_MEANWHILE = {"23505", "42P06"}  # unique_violation, duplicate_schema

# What the schema consists of, in the order of definition; all of it may be defined again.
DEFINITION = (
    "versions.sql",
    "change_log.sql",
    "retention.sql",
    "consumers.sql",
    "values.sql",
    "hint_capture.sql",
    "triggers.sql",
    "log_capture.sql",
    "privileges.sql",
)


def version(connection: Connection) -> int:
    """Return the version of the schema in this database, 0 where there is none.

    Raises `MissingRightError` when the current role may not read it.
    """
    # Not by to_regclass: it may answer from a cache that is older than the statement.
    may_read = connection.scalar(text(query("has_schema")))
    if may_read is None:
        return 0
    if not may_read:
        raise MissingRightError(
            "The current role may not read rowsignal.migration, as every role should; the owner"
            " of schema rowsignal fixes that by installing triggers again."
        )
    return connection.scalar(text(query("schema_version"))) or 0


def apply(connection: SyncConnection) -> list[str]:
    """Upgrade the schema to this library's version; return the names of the migrations applied.

    Runs in the caller's transaction and is safe to call from many processes at once. Raises
    `SchemaVersionError` when the database is newer than the library, and `SchemaOwnerError` when
    the schema belongs to a role that the current one does not trust. An offline connection gets
    the script of all migrations, which brings any older version up to date.
    """
    if not isinstance(connection, Connection):
        _execute(connection, "schema.sql")
        return _upgrade(connection, 0)
    check_owner(connection)
    found = version(connection)
    # No lock is taken where nothing is to be done.
    if found == CURRENT:
        return []
    if found == 0 and (found := _begin(connection)) == 0:
        return _create(connection)
    if found < CURRENT:
        take_lock(connection)
        # Another process may have upgraded it while this one waited for the lock.
        found = version(connection)
    if found > CURRENT:
        raise SchemaVersionError(
            f"Schema rowsignal is at version {found}, this library knows {CURRENT}:"
            " upgrade rowsignal."
        )
    return _upgrade(connection, found)


def problems(connection: Connection) -> list[str]:
    """Return a sentence for each change made by hand; none for a schema of another version."""
    return integrity.problems(connection, DEFINITION) if version(connection) == CURRENT else []


def repair(connection: Connection) -> None:
    """Define the functions and rights of the current version again."""
    _define(connection)


def take_lock(connection: Connection) -> None:
    """Wait for other installations, and block them until the transaction ends.

    Waits as long as `lock_timeout` allows. It locks a table of the schema: unlike an advisory lock,
    other roles cannot take it.
    """
    connection.execute(text(query("installation_lock")))


def migrate(connection: Connection, target: int = CURRENT) -> list[str]:
    """Upgrade or downgrade the schema to a version; return the names of the migrations run.

    A downgrade drops the objects of later versions with their data. Runs in the caller's
    transaction.
    """
    check_owner(connection)
    found = version(connection) or _begin(connection)
    if found:
        take_lock(connection)
        found = version(connection)
    down = [(number, name) for number, name in reversed(migrations()) if found >= number > target]
    for number, name in down:
        _execute(connection, f"migrations/{number:04}_{name}.down.sql")
        _upgrade(connection, 0, number - 1)  # functions that this version had replaced
    return [name for _, name in down] or _upgrade(connection, found, target)


@dataclass(frozen=True, slots=True)
class SchemaStatus:
    """The version of the schema in a database (0: none) and the one this library wants."""

    version: int
    wanted: int

    @property
    def is_current(self) -> bool:
        """Tell whether the two versions are equal."""
        return self.version == self.wanted


@overload
def schema_status(bind: AsyncBind) -> Awaitable[SchemaStatus]: ...
@overload
def schema_status(bind: SyncBind) -> SchemaStatus: ...
def schema_status(bind: AsyncBind | SyncBind) -> SchemaStatus | Awaitable[SchemaStatus]:
    """Return the version of the schema in a database; awaitable for an async bind."""

    def work(connection: SyncConnection) -> SchemaStatus:
        if not isinstance(connection, Connection):
            raise TypeError("The status of the schema cannot be asked offline.")
        return SchemaStatus(version(connection), CURRENT)

    return run_on(bind, work)


def _begin(connection: Connection) -> int:
    """Create the schema if there is none; return the version that another process installed.

    Two processes that create it at once wait for each other: the second finds the first's schema.
    """
    try:
        with connection.begin_nested():
            _execute(connection, "schema.sql")
    except DBAPIError as error:
        if sqlstate(error) not in CREATED_MEANWHILE:
            raise
        check_owner(connection)
    return version(connection)


def _create(connection: Connection) -> list[str]:
    _define(connection)
    for number, name in migrations():
        connection.execute(text(query("record_migration")), {"version": number, "name": name})
    return [name for _, name in migrations()]


def _define(connection: Connection) -> None:
    for file in DEFINITION:
        _execute(connection, file)
    execute(connection, "select rowsignal.close_v1()")


def _upgrade(connection: SyncConnection, found: int, target: int = CURRENT) -> list[str]:
    up = [(number, name) for number, name in migrations() if found < number <= target]
    for number, name in up:
        _execute(connection, f"migrations/{number:04}_{name}.up.sql")
    return [name for _, name in up]


def _execute(connection: SyncConnection, file: str) -> None:
    for statement in split(read(file)):
        execute(connection, statement)
