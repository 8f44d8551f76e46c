"""The filters of `rowsignal watch`: keys, columns and conditions."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from rowsignal.changes import Operation, Reset
from rowsignal.cli.change_output import Shown, plain
from rowsignal.cli.errors import CommandError, needing

if TYPE_CHECKING:
    from rowsignal.sse.access.filters import Condition


@dataclass(frozen=True, slots=True)
class Narrowing:
    """The options `--pk`, `--where` and `--column` of one command; they are about one table."""

    pk: Sequence[str]
    where: Sequence[str]
    columns: Sequence[str]

    def options(self, tables: Sequence[sa.Table]) -> dict[str, Any]:
        """Return the keywords of `watch`; raise `CommandError` for bad values."""
        if not (self.pk or self.where or self.columns):
            return {}
        table = _only_table(tables)
        if unknown := [name for name in self.columns if name not in table.c]:
            raise CommandError(
                f"{table} has no column {unknown[0]!r}; it has {', '.join(table.c.keys())}."
            )
        options: dict[str, Any] = {"rows": True} if self.where else {}
        if self.columns:
            options["columns"] = list(self.columns)
        if self.pk:
            options["pk"] = [_key(text, table) for text in self.pk]
        return options

    def conditions(self, tables: Sequence[sa.Table]) -> "Conditions":
        """Return the conditions, checked against the table."""
        if not self.where:
            return Conditions(())
        with needing("sse", "--where"):
            from rowsignal.sse.access.filters import parse_where  # noqa: PLC0415 -- an optional extra

        table = _only_table(tables)
        return Conditions(parse_where(self.where, table, table.c.keys()))


@dataclass(frozen=True, slots=True)
class Conditions:
    """Conditions on rows; a row that met them only before a change is shown, too."""

    found: Sequence["Condition"]

    def want(self, shown: Shown) -> bool:
        """Tell whether to show a change; a gap is always shown."""
        item = shown.item
        if not self.found or isinstance(item, Reset) or item.operation is Operation.TRUNCATE:
            return True
        rows = [row for row in (item.row, shown.old) if row is not None]
        return any(all(it.holds(_as_json(row)) for it in self.found) for row in rows)


def _as_json(row: Any) -> dict[str, Any]:
    return {name: None if value is None else plain(value) for name, value in row.items()}


def _only_table(tables: Sequence[sa.Table]) -> sa.Table:
    if len(tables) != 1:
        raise CommandError("--pk, --where and --column are about one table: name that table.")
    return tables[0]


def _key(text: str, table: sa.Table) -> Any:
    columns = list(table.primary_key)
    values: Any = [text]
    if len(columns) > 1:
        try:
            values = json.loads(text)
        except ValueError:
            values = []
        if not isinstance(values, list) or len(values) != len(columns):
            names = ", ".join(column.name for column in columns)
            raise CommandError(f"--pk {text!r}: write a JSON array with values for {names}.")
    found = tuple(_value(value, column) for value, column in zip(values, columns, strict=True))
    return found if len(found) > 1 else found[0]


def _value(value: Any, column: sa.Column[Any]) -> Any:
    """Return a key value as the driver expects it for the column."""
    with needing("sse", "--pk"):
        from rowsignal.sse.access.column_types import Number, kind_of  # noqa: PLC0415 -- as above

    text = value if isinstance(value, str) else json.dumps(value)
    found = kind_of(column).parse(text)
    return found.value if isinstance(found, Number) else found
