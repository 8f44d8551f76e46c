"""The schema `rowsignal` in a database: which version it has, and bringing it up to date."""

from sqlalchemy import Connection, text

from rowsignal import sql
from rowsignal.binds import Statement, SyncConnection
from rowsignal.exceptions import SchemaVersionError

CURRENT = max(number for number, _ in sql.migrations())
LOCK_KEY = 8246779703540740722  # "rowsignal" in ASCII, as far as 64 bits go


def version(connection: Connection) -> int:
    """Return the version of the schema in this database, 0 where there is none."""
    if connection.scalar(text("SELECT to_regclass('rowsignal.migration')")) is None:
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
            f"Schema rowsignal is at version {found}, this library knows {CURRENT}: upgrade rowsignal."
        )
    return _run(connection, found)


def take_lock(connection: Connection) -> None:
    """Wait for the turn to change our objects; it ends with the transaction.

    Asks again and again instead of queueing: a blocked `pg_advisory_xact_lock` would hold a
    snapshot, and with it back every CREATE INDEX CONCURRENTLY of the database.
    """
    ask = text("SELECT pg_try_advisory_xact_lock(:key) OR pg_sleep(0.02) IS NULL")
    while not connection.scalar(ask, {"key": LOCK_KEY}):
        pass


def _run(connection: SyncConnection, found: int) -> list[str]:
    applied = []
    for number, name in sql.migrations():
        if number > found:
            for statement in sql.statements(sql.read(f"migrations/{number:04}_{name}.up.sql")):
                connection.execute(Statement(statement))
            applied.append(name)
    return applied
