"""Lists of tables: from models and names to the names in a statement."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Table, inspect
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.compiler import SQLCompiler


def tables_of(entities: Iterable[Any]) -> list[Table]:
    """Return the tables of models and `Table`s, each once.

    A model stands for its whole hierarchy: the tables of joined inheritance above and below it.
    Raises `TypeError` for anything else and `ValueError` for an empty list.
    """
    tables = [table for entity in entities for table in _tables_of(entity)]
    if not tables:
        raise ValueError("The list of tables is empty: name at least one model or Table.")
    return list(dict.fromkeys(tables))


def describe(tables: Iterable[Table]) -> str:
    """Return the tables' names for a message."""
    return ", ".join(sorted(str(table) for table in tables))


def render(compiler: SQLCompiler, tables: Iterable[Table]) -> str:
    """Return the tables' names for a statement: quoted, qualified, in the one order for all.

    Schemas are translated by `schema_translate_map` as in any other statement.
    """
    translated = compiler.schema_translate_map or {}
    default = compiler.dialect.default_schema_name or "public"

    def place(table: Table) -> tuple[str, str]:
        return translated.get(table.schema, table.schema) or default, table.name

    # Transactions that take their locks in one order do not deadlock with each other
    return ", ".join(compiler.preparer.format_table(table) for table in sorted(tables, key=place))


def _tables_of(entity: Any) -> Iterable[Table]:
    found = inspect(entity, raiseerr=False)
    if isinstance(found, Table):
        return [found]
    if isinstance(found, Mapper):
        hierarchy = [table for mapper in found.self_and_descendants for table in mapper.tables]
        return [table for table in hierarchy if isinstance(table, Table)]
    raise TypeError(f"{entity!r} is neither a mapped class nor a Table.")
