"""Row events: `Change`, its `Operation`, `Reset`, and the filter of changes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Generic

from typing_extensions import TypeVar

from rowsignal.json_forms import json_form

Model = TypeVar("Model", default=Any)


class Operation(StrEnum):
    """The kinds of row change."""

    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change(Generic[Model]):
    """One committed change of one row (of a whole table for `truncate`).

    `key` maps primary-key column names to JSON values: integers and booleans as such, other types
    as PostgreSQL's text (`"1.00"`, `"2026-11-21T09:30:00+00:00"`). It is None for a change without
    one known row: a truncate, or a hint for many rows at once.
    `changed` names the columns that an update changed; None means unknown, perhaps all. `position`
    is an opaque string to resume after (logged tables only).

    `row` has the values if they were requested: for a mapped class by attribute name, as the ORM
    loads them, and `instance` is an object of that class.

    `trace` is what the writer's session had in its setting `rowsignal.trace` (logged tables only),
    usually the W3C `traceparent` of its span. Any writer can set any text. The wire form leaves it
    out: it is for programs of the operator, not for readers of a page.
    """

    operation: Operation
    schema: str
    table: str
    key: Mapping[str, Any] | None = None
    changed: tuple[str, ...] | None = None
    position: str | None = None
    transaction_id: int | None = None
    captured_at: datetime | None = None
    row: Mapping[str, Any] | None = None
    trace: str | None = None

    @property
    def instance(self) -> Model | None:
        """A new object of the watched class with the values of `row`, attached to no session.

        None without values, and where the class has its columns in several tables.
        """
        row: Any = self.row
        return row.to_instance() if hasattr(row, "to_instance") else None

    def to_dict(self) -> dict[str, object]:
        """Return the wire form as a dict; integers beyond 2**53 - 1 become strings."""
        captured = self.captured_at and self.captured_at.isoformat()
        return {
            "operation": str(self.operation),
            "schema": self.schema,
            "table": self.table,
            "key": self.key and json_form(dict(self.key)),
            "changed": self.changed and list(self.changed),
            "position": self.position,
            "transaction_id": self.transaction_id and str(self.transaction_id),
            "captured_at": captured,
            **({} if self.row is None else {"row": json_form(dict(self.row))}),
        }

    def to_json(self) -> str:
        """Return the wire form: a compact JSON object."""
        return json.dumps(self.to_dict(), separators=(",", ":"), ensure_ascii=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset:
    """A gap: changes before this point may be missing, so read the tables again.

    `reason` is a sentence for people; `position` is the place where the stream continues, if any.
    """

    reason: str
    position: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeFilter:
    """A filter of changes; None means all.

    `keys` holds `Change.key` mappings; an update must have changed at least one of `columns`;
    `predicate` is a function of the whole change.
    """

    keys: tuple[Mapping[str, Any], ...] | None = None
    operations: frozenset[Operation] | None = None
    columns: frozenset[str] | None = None
    predicate: Callable[[Change], bool] | None = None

    def matches(self, change: Change) -> bool:
        """Tell whether the filter passes `change`; unknown columns and keys pass."""
        return (
            self._wants_operation(change)
            and self._wants_key(change)
            and self._wants_columns(change)
            and (self.predicate is None or self.predicate(change))
        )

    def _wants_operation(self, change: Change) -> bool:
        return self.operations is None or change.operation in self.operations

    def _wants_key(self, change: Change) -> bool:
        return self.keys is None or change.key is None or change.key in self.keys

    def _wants_columns(self, change: Change) -> bool:
        if self.columns is None or change.operation is not Operation.UPDATE:
            return True
        return change.changed is None or not self.columns.isdisjoint(change.changed)
