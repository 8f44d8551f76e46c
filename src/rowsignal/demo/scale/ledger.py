"""The writer's own record of each change, made in the transaction of the change.

It depends on no trigger and no log, so what readers received can be compared with it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Session

from rowsignal.demo.shop_tables import Base

SCHEMA = "demo"
metadata = sa.MetaData(schema=SCHEMA)
entries = sa.Table(
    "entries",
    metadata,
    sa.Column("number", sa.BigInteger, sa.Identity(), primary_key=True),
    sa.Column("transaction", sa.Text, server_default=sa.text("pg_current_xact_id()::text")),
    sa.Column("table", sa.Text, nullable=False),
    sa.Column("id", sa.Integer, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
)

RowId = tuple[str, int]  # a table's name with its schema, and a key


class Entry(NamedTuple):
    """One change of one row; the number grows with each change of that row."""

    number: int
    row: RowId
    operation: str
    transaction: str


class Ledger:
    """Records the changes that sessions of one engine write."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._read = 0

    async def create(self) -> None:
        """Create the table."""
        async with self._engine.begin() as connection:
            await connection.execute(sa.schema.CreateSchema(SCHEMA))
            await connection.run_sync(metadata.create_all)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record during the block, in the transactions of the writer."""
        event.listen(Session, "after_flush", self._flushed)
        try:
            yield
        finally:
            event.remove(Session, "after_flush", self._flushed)

    async def read(self) -> list[Entry]:
        """Return all entries, in their order."""
        columns = entries.c.number, entries.c.table, entries.c.id, entries.c.operation
        wanted = sa.select(*columns, entries.c.transaction).order_by(entries.c.number)
        async with self._engine.connect() as connection:
            rows = await connection.execute(wanted)
            return [
                Entry(number, (table, id_), operation, transaction)
                for number, table, id_, operation, transaction in rows
            ]

    async def count(self) -> int:
        """Return the number of entries."""
        async with self._engine.connect() as connection:
            return await connection.scalar(sa.select(sa.func.count(entries.c.number))) or 0

    def _flushed(self, session: Session, _: object) -> None:
        if session.get_bind() is not self._engine.sync_engine:
            return
        changed = [it for it in session.dirty if session.is_modified(it)]
        groups = (("insert", session.new), ("update", changed), ("delete", session.deleted))
        found = [_entry(operation, row) for operation, rows in groups for row in rows]
        if found:
            session.connection().execute(entries.insert(), found)


def _entry(operation: str, row: Any) -> dict[str, Any]:
    table = row.__table__
    return {"table": f"{table.schema}.{table.name}", "id": row.id, "operation": operation}


def table_names() -> list[str]:
    """Return the names of the tables that are written."""
    return sorted(f"{table.schema}.{table.name}" for table in Base.metadata.tables.values())
