"""Errors of rowsignal; each inherits the fitting builtin, too."""

from typing import Any


class RowSignalError(Exception):
    """Base of every error that rowsignal defines."""


class SessionError(RowSignalError):
    """Base of the errors of sessions, their connections and their transactions."""


class LockError(RowSignalError):
    """Base of the errors of locks on tables and of advisory locks."""


class StreamError(RowSignalError):
    """Base of the errors of streams and the change log: positions, filters, rights, consumers."""


class SchemaError(RowSignalError):
    """Base of the errors of what is installed in a database: its schema, triggers and rights."""


class NotFoundError(RowSignalError, LookupError):
    """The row does not exist, or was deleted during the wait."""


class WaitTimeoutError(RowSignalError, TimeoutError):
    """A row did not change in time."""


class UnreadableRowError(RowSignalError, ValueError):
    """A row has a value or a key that this process cannot read or send.

    `__cause__` is the error of the driver, the column's type or PostgreSQL.
    """


class PoolerError(RowSignalError, RuntimeError):
    """The engine connects through a pooler that its settings do not suit."""


class PendingChangesError(SessionError, ValueError):
    """The caller's transaction has uncommitted changes that conflict with the call."""


class TriggerInstallError(SchemaError, ValueError):
    """A table cannot have triggers, or its writes would fail with them."""


class SchemaVersionError(SchemaError, RuntimeError):
    """The database's `rowsignal` schema is missing, older or newer than this library."""


class SchemaOwnerError(SchemaError, PermissionError):
    """The database's `rowsignal` schema belongs to a role that the current one does not trust."""


class GrantError(SchemaError, PermissionError):
    """A right could not be granted: no such role or table, or no right to grant."""


class MissingRightError(SchemaError, PermissionError):
    """The current role lacks a right; the message names the command that grants it."""


class PositionError(StreamError, ValueError):
    """A position is malformed, or belongs to another log."""


class ConsumerError(StreamError, ValueError):
    """A named consumer does not exist in the database, or has other settings there."""


class StandbyError(StreamError, RuntimeError):
    """An operation that needs the primary was called on a standby."""


class PoolExhaustedError(SessionError, TimeoutError):
    """No connection became free in the pool in time."""


class LockTimeoutError(LockError, TimeoutError):
    """A lock was not granted in time."""


class LockLostError(LockError, RuntimeError):
    """A lock was lost with its connection before the end of its block."""


class DeadlockError(LockError, RuntimeError):
    """Transactions waited for each other's locks, and PostgreSQL aborted this one."""


class AbortedTransactionError(SessionError, RuntimeError):
    """A commit was requested after PostgreSQL had already undone the transaction."""


class DatabaseExistsError(RowSignalError, ValueError):
    """The database to create exists already."""


class DatabaseInUseError(RowSignalError, RuntimeError):
    """The database to drop or to copy has connections."""


class MissingSessionError(SessionError, RuntimeError):
    """`db.session` was used where no session is open."""


class SessionNotInitialisedError(SessionError, RuntimeError):
    """`db` was used before a middleware or a call of `init` gave it an engine."""


class PoolTimeoutError(PoolExhaustedError):
    """No connection of the pool, or place of a block's `max_concurrent`, became free in time.

    `timeout` is the length of the wait in seconds, None without a wait. `retry_after` is the number
    of seconds for the header of a 503. `pool_status` has the pool's numbers as in
    `db.pool_status()`, or None.
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
    """A block that commits as a whole was rolled back, because one of its tasks failed."""


class SessionInUseError(SessionError, RuntimeError):
    """A request or block ended while another task was running a statement on its session."""


class EmbeddedPostgresError(RowSignalError, RuntimeError):
    """An embedded PostgreSQL server could not be found, started or used."""


class MigrationError(RowSignalError, RuntimeError):
    """The database, the models and the migrations do not fit together."""


class MissingExtraError(RowSignalError, ImportError):
    """A feature needs an extra that is not installed."""


class AddressError(RowSignalError, OSError):
    """The service cannot listen at its address."""


def missing_extra(module: str, extra: str, error: ModuleNotFoundError) -> ImportError:
    """Return the error for a missing module of an extra, with the command that installs it."""
    if error.name is None or error.name.partition(".")[0] == "rowsignal":
        return error
    return MissingExtraError(f"{module} needs {error.name}: pip install 'rowsignal[{extra}]'")


class FilterError(StreamError, ValueError):
    """A filter of a request is malformed, or does not fit its column."""


class AccessDeniedError(StreamError, PermissionError):
    """A token or ticket is missing, used, expired or invalid."""


class NotPermittedError(AccessDeniedError):
    """A valid token or ticket does not include this right."""


class ReaderLimitError(StreamError, RuntimeError):
    """The limit of open streams is reached; `is_own`: the limit of the caller's principal."""

    def __init__(self, message: str, *, is_own: bool = False) -> None:
        super().__init__(message)
        self.is_own = is_own


class NotWatchedError(StreamError, RuntimeError):
    """A table has no triggers, so its changes are not captured."""


class UnavailableError(RowSignalError, ConnectionError):
    """The database does not answer at present."""
