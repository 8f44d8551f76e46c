"""Sessions: as a FastAPI dependency, in a block, in a transaction."""

from rowsignal.orm.sessions.dependency import (
    SessionDependency,
    create_db_context,
    create_db_dependency,
)
from rowsignal.orm.sessions.transactions import get_transaction, transaction

__all__ = [
    "SessionDependency",
    "create_db_context",
    "create_db_dependency",
    "get_transaction",
    "transaction",
]
