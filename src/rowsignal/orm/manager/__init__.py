"""`AsyncDatabaseManager`: an engine, its sessions, and their schema."""

from rowsignal.orm.manager.config import create_sync_command, manager_from_config, syncdb
from rowsignal.orm.manager.inspection import exists_in_db, is_sqlite
from rowsignal.orm.manager.manager import AsyncDatabaseManager, DatabaseStatus, SyncResult
from rowsignal.orm.manager.migration_environment import create_migration_environment
from rowsignal.orm.manager.sessions import make_db_session

__all__ = [
    "AsyncDatabaseManager",
    "DatabaseStatus",
    "SyncResult",
    "create_migration_environment",
    "create_sync_command",
    "exists_in_db",
    "is_sqlite",
    "make_db_session",
    "manager_from_config",
    "syncdb",
]
