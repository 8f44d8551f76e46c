"""What a reader may see, as the application's `authorize` dependency says."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rowsignal.changes import Operation

EVERY_TABLE = "*"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableGrant:
    """What may be seen of one table; None and () mean no further limit.

    `columns` narrows what is shown, `operations` which changes are told, and `where` holds
    conditions in the filter grammar (`customer_id.eq.7`), on any column of the table, that every
    row shown must meet. A row that stops meeting them is told as a delete.
    """

    columns: frozenset[str] | None = None
    operations: frozenset[Operation] | None = None
    where: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a reader may see; what is not named is not there for this reader.

    `tables` maps `schema.table` names, or `*` for every table that is offered, to their grants.
    `principal` is whom the limits count, `expires_at` (seconds since 1970) ends the stream,
    `status` admits to the service's status page.
    """

    tables: Mapping[str, TableGrant] = field(default_factory=dict)
    principal: str = "anonymous"
    expires_at: float | None = None
    status: bool = False

    def for_table(self, name: str) -> TableGrant | None:
        """Return the grant for one table, or None when there is none."""
        return self.tables.get(name, self.tables.get(EVERY_TABLE))


async def grant_everything() -> Grant:
    """Admit everybody to everything that is offered: the default, for applications of one's own."""
    return Grant(tables={EVERY_TABLE: TableGrant()}, status=True)
