"""Sessions, transactions, locks, databases and models, useful without any watching."""

from rowsignal.orm.database import Database
from rowsignal.orm.exception_responses import add_exception_handlers
from rowsignal.orm.locks import LockMode, advisory_lock, lock_tables
from rowsignal.orm.manager import (
    AsyncDatabaseManager,
    DatabaseStatus,
    SyncResult,
    create_migration_environment,
    create_sync_command,
    exists_in_db,
    is_sqlite,
    make_db_session,
    manager_from_config,
    syncdb,
)
from rowsignal.orm.models import (
    Base,
    QueryMixin,
    get_base,
    get_by_pk,
    get_one,
    get_or_create,
    update_or_create,
)
from rowsignal.orm.request_sessions import (
    SessionProxy,
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
    db,
)
from rowsignal.orm.sessions import (
    create_db_context,
    create_db_dependency,
    get_transaction,
    transaction,
)
from rowsignal.orm.tables import (
    cleanup_tables,
    create_database,
    drop_database,
    m2m_add,
    m2m_remove,
    m2m_set,
)
from rowsignal.orm.urls import async_url

__all__ = [
    "AsyncDatabaseManager",
    "Base",
    "Database",
    "DatabaseStatus",
    "LockMode",
    "QueryMixin",
    "SQLAlchemyMiddleware",
    "SessionProxy",
    "SyncResult",
    "add_exception_handlers",
    "advisory_lock",
    "async_url",
    "cleanup_tables",
    "create_database",
    "create_db_context",
    "create_db_dependency",
    "create_middleware_and_session_proxy",
    "create_migration_environment",
    "create_sync_command",
    "db",
    "drop_database",
    "exists_in_db",
    "get_base",
    "get_by_pk",
    "get_one",
    "get_or_create",
    "get_transaction",
    "is_sqlite",
    "lock_tables",
    "m2m_add",
    "m2m_remove",
    "m2m_set",
    "make_db_session",
    "manager_from_config",
    "syncdb",
    "transaction",
    "update_or_create",
]
