"""Grants: what a reader may see, returned by the application's `authorize` dependency."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rowsignal.changes import Operation

EVERY_TABLE = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableGrant:
    """The rights on one table; None and () mean no further limit.

    `columns` limits the columns, `operations` the kinds of change, and `where` holds conditions in
    the filter grammar (`customer_id.eq.7`), on any column of the table, that every row must meet. A
    row that no longer meets them is sent as a delete.
    """

    columns: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """The rights of one reader; a table without a grant does not exist for the reader.

    `tables` maps `schema.table` names, or `*` for every offered table, to their grants. `principal`
    is the name under which limits count the reader's streams, `expires_at` (seconds since 1970)
    ends the stream, `status` allows the service's status page.
    """

    tables: Mapping[str, TableGrant] = field(default_factory=dict)
    principal: str = "anonymous"
    expires_at: float | None = None
    status: bool = False

    def for_table(self, name: str) -> TableGrant | None:
        """Return the grant for one table, or None when there is none."""
        return self.tables.get(name, self.tables.get(EVERY_TABLE))


async def grant_everything() -> Grant:
    """Grant every reader every offered table: the default, for applications without users."""
    return Grant(tables={EVERY_TABLE: TableGrant()}, status=True)
