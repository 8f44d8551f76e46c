"""Triggers on the tables to watch: install, uninstall, status."""

import json
from collections.abc import Awaitable, Iterable, Sequence
from typing import Any

from sqlalchemy import MetaData, Table

from rowsignal import schema
from rowsignal.binds import AsyncBind, Statement, SyncBind, SyncConnection, run_on
from rowsignal.identifiers import literal, qualify
from rowsignal.trigger_catalog import Capture, TableName, captures

__all__ = ["Capture", "TableName", "captures", "install_triggers"]


def tables_of(what: Any) -> list[Table]:
    if isinstance(what, Table):
        return [what]
    if isinstance(what, MetaData):
        return list(what.sorted_tables)
    if isinstance(what, Iterable) and not hasattr(what, "__table__"):
        return [table for item in what for table in tables_of(item)]
    if hasattr(what, "__table__"):
        return [what.__table__]
    return list(what.metadata.sorted_tables)


def install_triggers(bind: AsyncBind | SyncBind, what: Any, **settings: Any) -> Any:
    """Give tables the triggers that tell of their changes."""

    def work(connection: SyncConnection) -> list[str]:
        schema.apply(connection)
        for table in tables_of(what):
            name = literal(qualify(table.name, table.schema))
            connection.execute(
                Statement(f"SELECT rowsignal.install_v1({name}, {literal(json.dumps(settings))})")
            )
        return [str(table) for table in tables_of(what)]

    return run_on(bind, work)
