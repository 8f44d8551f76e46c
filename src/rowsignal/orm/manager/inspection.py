"""Queries of migrations about their database."""

from sqlalchemy import Connection, Engine, inspect


def is_sqlite(bind: Engine | Connection) -> bool:
    """Tell whether the database is SQLite."""
    return bind.dialect.name == "sqlite"


def exists_in_db(bind: Engine | Connection, tablename: str, columnname: str | None = None) -> bool:
    """Tell whether a table, and in it a column, exists in the database.

    exists_in_db(op.get_bind(), "orders", "price")
    """
    inspector = inspect(bind)
    if not inspector.has_table(tablename):
        return False
    if columnname is None:
        return True
    return columnname in {column["name"] for column in inspector.get_columns(tablename)}
