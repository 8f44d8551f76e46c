"""What can go wrong, each also an instance of the builtin that fits."""

from typing import Any


class RowSignalError(Exception):
    """Base of every error that rowsignal raises on its own account."""


class SessionError(RowSignalError):
    """Base of the errors of sessions, their connections and their transactions."""


class LockError(RowSignalError):
    """Base of the errors of locks on tables and of advisory locks."""


class NotFoundError(RowSignalError, LookupError):
    """The row does not exist, or was deleted while somebody waited for it."""


class WaitTimeoutError(RowSignalError, TimeoutError):
    """A row did not change in time."""


class UnreadableRowError(RowSignalError, ValueError):
    """A waited-for row holds a value, or has a key, that this process cannot read or send.

    `__cause__` is what the driver, the column's type or PostgreSQL says.
    """


class PoolerError(RowSignalError, RuntimeError):
    """A connection pooler is in between, and the engine is not made for it."""


class PendingChangesError(RowSignalError, ValueError):
    """The caller's own unfinished work would be mistaken for, or lost to, a change."""


class TriggerInstallError(RowSignalError, ValueError):
    """A table cannot carry triggers, or the server would turn them into failing writes."""


class SchemaVersionError(RowSignalError, RuntimeError):
    """The database's `rowsignal` schema is missing, older or newer than this library."""


class SchemaOwnerError(RowSignalError, PermissionError):
    """The database's `rowsignal` schema belongs to a role that the current one does not trust."""


class GrantError(RowSignalError, PermissionError):
    """A right could not be given: no such role or table, or no right to grant."""


class MissingRightError(RowSignalError, PermissionError):
    """The current role lacks a right; the message names the command that grants it."""


class PositionError(RowSignalError, ValueError):
    """A position is malformed, or belongs to another log."""


class ConsumerError(RowSignalError, ValueError):
    """A named consumer is not in the database as it was asked for."""


class StandbyError(RowSignalError, RuntimeError):
    """Something that needs a primary was asked of a standby."""


class PoolExhaustedError(SessionError, TimeoutError):
    """No connection became free in the pool in time."""


class LockTimeoutError(LockError, TimeoutError):
    """A lock was not granted in time."""


class LockLostError(LockError, RuntimeError):
    """A lock went away with its connection before its block had ended."""


class DeadlockError(LockError, RuntimeError):
    """Transactions waited for each other's locks, and PostgreSQL ended this one's wait."""


class AbortedTransactionError(SessionError, RuntimeError):
    """A commit was asked for after PostgreSQL had already undone the transaction."""


class DatabaseExistsError(RowSignalError, ValueError):
    """The database to create is there already."""


class DatabaseInUseError(RowSignalError, RuntimeError):
    """The database to drop, or to copy, has connections."""


class MissingSessionError(SessionError, RuntimeError):
    """`db.session` was used where no session is open."""


class SessionNotInitialisedError(SessionError, RuntimeError):
    """`db` was used before a middleware or a call of `init` gave it an engine."""


class PoolTimeoutError(PoolExhaustedError):
    """No connection in the pool, or place among a block's `max_concurrent`, became free in time.

    `timeout`: the seconds that were waited, None where nothing was waited for. `retry_after`:
    seconds, for the header of a 503. `pool_status`: the pool's numbers as `db.pool_status()`
    gives them, None where they are not known.
    """

    def __init__(
        self,
        message: str = "No connection became free in the pool in time.",
        *,
        timeout: float | None = None,
        retry_after: int = 1,
        pool_status: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.timeout = timeout
        self.retry_after = retry_after
        self.pool_status = pool_status


class ProxyBoundError(SessionError, RuntimeError):
    """A `db` proxy that serves one database was given another."""


class RolledBackError(SessionError, RuntimeError):
    """A block that stands or falls as a whole fell, because one of its tasks failed."""


class SessionInUseError(SessionError, RuntimeError):
    """A request or block ended while another task was running a statement on its session."""


class EmbeddedPostgresError(RowSignalError, RuntimeError):
    """A PostgreSQL server of our own could not be found, started or used."""


class MigrationError(RowSignalError, RuntimeError):
    """The database, the models and the migrations do not fit together."""


class MissingExtraError(RowSignalError, ImportError):
    """Something was used that an optional part of the installation provides."""


class AddressError(RowSignalError, OSError):
    """The service cannot listen at the address that it was given."""


def missing_extra(module: str, extra: str, error: ModuleNotFoundError) -> ImportError:
    """Return what to raise where a module of an extra cannot be imported: how to install it."""
    if error.name is None or error.name.partition(".")[0] == "rowsignal":
        return error
    return MissingExtraError(f"{module} needs {error.name}: pip install 'rowsignal[{extra}]'")


class FilterError(RowSignalError, ValueError):
    """A filter from outside is not in the grammar, or does not fit its column."""


class AccessDeniedError(RowSignalError, PermissionError):
    """A token or ticket is missing, spent, expired or not meant for this."""


class NotPermittedError(AccessDeniedError):
    """A valid token or ticket does not include this right."""


class ReaderLimitError(RowSignalError, RuntimeError):
    """There are as many open streams as there may be; `is_own` says that they are the caller's."""

    def __init__(self, message: str, *, is_own: bool = False) -> None:
        super().__init__(message)
        self.is_own = is_own


class NotWatchedError(RowSignalError, RuntimeError):
    """A table has no triggers, so changes of it are not told."""


class UnavailableError(RowSignalError, ConnectionError):
    """The database does not answer just now."""


class UnsupportedError(RowSignalError, NotImplementedError):
    """Something was asked for that needs a database, of a process that has none."""
