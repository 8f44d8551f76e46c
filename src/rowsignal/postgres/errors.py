"""Classification of exceptions from PostgreSQL, a driver or the network.

Errors are classified by SQLSTATE (PostgreSQL manual, "PostgreSQL Error Codes"), not by the text of
a message, which depends on `lc_messages`, and not by the class alone: SQLAlchemy wraps a refused
value and a restarting server in the same class.
"""

import asyncpg
from sqlalchemy.exc import DBAPIError, InvalidRequestError, ResourceClosedError

LOCK_NOT_AVAILABLE = "55P03"
QUERY_CANCELED = "57014"
# connection exception, insufficient resources, operator intervention (a server that starts or
# stops), system error, transaction rollback (serialization, deadlock)
OUTAGE_CLASSES = frozenset({"08", "53", "57", "58", "40"})
# What another server process, a pooler or an older plan caused, and a new connection may mend.
STALE_STATES = frozenset({"26000", "42P05", "XX000"})
SCHEMA_CLASSES = frozenset({"42", "3F", "3D"})
VALUE_CLASSES = frozenset({"22", "23"})  # data exceptions and violated constraints
PREPARED_STATEMENT_STATES = frozenset({"26000", "42P05"})


def cause_of(error: BaseException) -> BaseException:
    """Return the driver's own exception behind SQLAlchemy's, or the exception itself."""
    if isinstance(error, DBAPIError) and error.orig is not None:
        return error.orig.__cause__ or error.orig
    return error


def sqlstate(error: BaseException) -> str | None:
    """Return the SQLSTATE of an error; None if it has none."""
    original = error.orig if isinstance(error, DBAPIError) else error
    for one in (original, getattr(original, "__cause__", None)):
        code = getattr(one, "sqlstate", None) or getattr(one, "pgcode", None)
        if code:
            return str(code)
    return None


def message(error: BaseException) -> str:
    """Return an error's message in one line, without statement, parameter values and class name.

    Errors without a text, such as those of `asyncio.timeout`, are named in words.
    """
    cause = cause_of(error)
    diagnostics = getattr(cause, "diag", None)  # psycopg's
    text = getattr(diagnostics or cause, "message_primary" if diagnostics else "message", None)
    text = text or str(cause)
    first, *_ = str(text).strip().splitlines() or [""]
    return first or _words_for(cause)


def _words_for(silent: BaseException) -> str:
    if isinstance(silent, TimeoutError):
        return "there was no answer in time"
    if isinstance(silent, OSError):
        return "the connection was lost"
    return type(silent).__name__


def describe(error: BaseException) -> str:
    """Return the kind of an error and its message in one line, for logs, without any values."""
    name, state = type(cause_of(error)).__name__, sqlstate(error)
    if state is not None and state[:2] in VALUE_CLASSES:  # such messages quote what they are about
        return f"{name} (SQLSTATE {state})"
    text = message(error)
    return name if text == name else f"{name}: {text}"


def is_locked(error: BaseException) -> bool:
    """Tell whether a lock was not granted, or a query not finished, within its timeout."""
    return sqlstate(error) in {LOCK_NOT_AVAILABLE, QUERY_CANCELED}


def is_outage(error: BaseException) -> bool:
    """Tell whether the server or the network is unavailable, so that a retry may help."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    state = sqlstate(error)
    if state is not None:
        return state[:2] in OUTAGE_CLASSES and state != QUERY_CANCELED
    cause = cause_of(error)
    # asyncpg refuses values that do not fit their type itself, without a SQLSTATE.
    if isinstance(cause, asyncpg.DataError | asyncpg.PostgresError):
        return False
    if isinstance(cause, OSError | TimeoutError | asyncpg.InterfaceError):
        return True
    if isinstance(cause, asyncpg.InternalClientError | ResourceClosedError):
        return True
    return isinstance(error, InvalidRequestError) and "invalidated" in str(error)


def is_stale(error: BaseException) -> bool:
    """Tell whether a plan, prepared statement or type known to this connection is outdated."""
    state = sqlstate(error)
    if state in STALE_STATES:
        return True
    # By name: SQLAlchemy wraps the errors of asyncpg in classes of the same names.
    names = {type(one).__name__ for one in (cause_of(error), getattr(error, "orig", None))}
    return not names.isdisjoint({"InvalidCachedStatementError", "OutdatedSchemaCacheError"})


def is_schema_mismatch(error: BaseException) -> bool:
    """Tell whether a statement does not fit the database: a missing table, column or right."""
    state = sqlstate(error)
    return state is not None and state[:2] in SCHEMA_CLASSES


def is_pooler_conflict(error: BaseException) -> bool:
    """Tell whether a pooler without prepared statements, or in statement mode, caused an error."""
    if "in statement pooling mode" in message(error):  # PgBouncer's words, never translated
        return True
    return sqlstate(error) in PREPARED_STATEMENT_STATES


def is_hopeless(error: BaseException) -> bool:
    """Tell whether a retry cannot help, because a value, statement or schema is wrong."""
    return not (is_outage(error) or is_locked(error) or is_stale(error))
