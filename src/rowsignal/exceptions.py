"""What can go wrong, each also an instance of the builtin that fits."""


class RowSignalError(Exception):
    """Base of every error that rowsignal raises on its own account."""


class NotFoundError(RowSignalError, LookupError):
    """The row does not exist, or was deleted while somebody waited for it."""


class WaitTimeoutError(RowSignalError, TimeoutError):
    """A row did not change in time."""


class PendingChangesError(RowSignalError, ValueError):
    """The caller's own unfinished work would be mistaken for, or lost to, a change."""


class TriggerInstallError(RowSignalError, ValueError):
    """A table can not carry triggers, or the server would turn them into failing writes."""


class SchemaVersionError(RowSignalError, RuntimeError):
    """The database's `rowsignal` schema is missing, older or newer than this library."""


class SchemaOwnerError(RowSignalError, PermissionError):
    """The database's `rowsignal` schema belongs to a role that the current one does not trust."""


class PositionError(RowSignalError, ValueError):
    """A position is malformed, or belongs to another log."""


class ConsumerError(RowSignalError, ValueError):
    """A named consumer is not in the database as it was asked for."""


class StandbyError(RowSignalError, RuntimeError):
    """Something that needs a primary was asked of a standby."""


class PoolExhaustedError(RowSignalError, TimeoutError):
    """No connection became free in the pool in time."""


class LockTimeoutError(RowSignalError, TimeoutError):
    """A lock was not granted in time."""


class LockLostError(RowSignalError, RuntimeError):
    """A lock went away with its connection before its block had ended."""


class DeadlockError(RowSignalError, RuntimeError):
    """Transactions waited for each other's locks, and PostgreSQL ended this one's wait."""


class AbortedTransactionError(RowSignalError, RuntimeError):
    """A commit was asked for after PostgreSQL had already undone the transaction."""


class DatabaseExistsError(RowSignalError, ValueError):
    """The database to create is there already."""


class DatabaseInUseError(RowSignalError, RuntimeError):
    """The database to drop, or to copy, has connections."""


class MissingSessionError(RowSignalError, RuntimeError):
    """`db.session` was used where no session is open."""


class SessionNotInitialisedError(RowSignalError, RuntimeError):
    """`db` was used before a middleware or a call of `init` gave it an engine."""


class PoolTimeoutError(PoolExhaustedError):
    """No connection in the pool, or place among a block's `max_concurrent`, became free in time.

    `retry_after`: seconds, for the header of a 503.
    """

    retry_after = 1


class ProxyBoundError(RowSignalError, RuntimeError):
    """A `db` proxy that serves one database was given another."""


class RolledBackError(RowSignalError, RuntimeError):
    """A block that stands or falls as a whole fell, because one of its tasks failed."""


class SessionInUseError(RowSignalError, RuntimeError):
    """A request or block ended while another task was running a statement on its session."""


class EmbeddedPostgresError(RowSignalError, RuntimeError):
    """A PostgreSQL server of our own could not be found, started or used."""


class MigrationError(RowSignalError, RuntimeError):
    """The database, the models and the migrations do not fit together."""


class MissingExtraError(RowSignalError, ImportError):
    """Something was used that an optional part of the installation provides."""


class FilterError(RowSignalError, ValueError):
    """A filter from outside is not in the grammar, or does not fit its column."""


class AccessDeniedError(RowSignalError, PermissionError):
    """A token or ticket is missing, spent, expired or not meant for this."""


class ReaderLimitError(RowSignalError, RuntimeError):
    """There are as many open streams as there may be; `is_own` says that they are the caller's."""

    def __init__(self, message: str, *, is_own: bool = False) -> None:
        super().__init__(message)
        self.is_own = is_own


class NotWatchedError(RowSignalError, RuntimeError):
    """A table has no triggers, so changes of it are not told."""


class UnavailableError(RowSignalError, ConnectionError):
    """The database does not answer just now."""
