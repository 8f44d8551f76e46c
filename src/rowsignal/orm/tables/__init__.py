"""Many-to-many relationships, databases, and emptying tables."""

from rowsignal.orm.tables.databases import create_database, drop_database
from rowsignal.orm.tables.m2m import m2m_add, m2m_remove, m2m_set
from rowsignal.orm.tables.truncate import cleanup_tables

__all__ = [
    "cleanup_tables",
    "create_database",
    "drop_database",
    "m2m_add",
    "m2m_remove",
    "m2m_set",
]
