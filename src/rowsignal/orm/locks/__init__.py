"""Advisory locks and locks on tables."""

from rowsignal.orm.locks.advisory import advisory_lock
from rowsignal.orm.locks.tables import LockMode, lock_tables

__all__ = [
    "LockMode",
    "advisory_lock",
    "lock_tables",
]
