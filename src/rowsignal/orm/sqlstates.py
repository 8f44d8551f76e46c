"""SQLSTATE codes (PostgreSQL manual, appendix A), and the attributes that drivers store them in."""

from sqlalchemy.exc import DBAPIError

UNIQUE_VIOLATION = "23505"
EXCLUSION_VIOLATION = "23P01"
IN_FAILED_TRANSACTION = "25P02"
INVALID_CATALOG_NAME = "3D000"
DEADLOCK_DETECTED = "40P01"
DUPLICATE_DATABASE = "42P04"
OBJECT_IN_USE = "55006"
LOCK_NOT_AVAILABLE = "55P03"


def sqlstate(error: DBAPIError) -> str | None:
    """Return the SQLSTATE of a server's error, for every driver."""
    code = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return None if code is None else str(code)
