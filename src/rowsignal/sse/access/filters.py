"""The filter grammar: `status.eq.paid`, checked against a column's type, never SQL from outside.

    condition = column "." operator "." value
    operator  = "eq" | "neq" | "lt" | "lte" | "gt" | "gte" | "in" | "is"
    value     = text | "(" item { "," item } ")" for `in` | "null" for `is`
    item      = text without comma, quote and parenthesis | a quoted text (backslash escapes)

A condition means the same in Python, over the JSON values of a row, and in PostgreSQL, as a bound
expression: comparing with null is never true, NaN equals itself and is the greatest number, and
text is ordered by code point (`COLLATE "C"`).
"""

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Column, ColumnElement, FromClause, Table, and_, true

from rowsignal.exceptions import FilterError
from rowsignal.sse.access.column_types import Kind, kind_of

MAX_ITEMS = 100
MAX_LENGTH = 4000
MAX_CONDITIONS = 20

COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
}
ORDERING = frozenset({"lt", "lte", "gt", "gte"})
OPERATORS = (*COMPARISONS, "in", "is")
ITEM = re.compile(r'(?:"((?:[^"\\]|\\["\\])*)"|([^,()"]*))(,|$)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Condition:
    """One checked condition on one column; hashable, so that equal filters share their work."""

    column: str
    operator: str
    values: tuple[Any, ...]
    kind: Kind = field(compare=False)

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row, given as JSON values by column name, meets the condition."""
        value = row.get(self.column)
        if self.operator == "is":
            return value is None
        if value is None:
            return False
        try:
            mine = self.kind.read(value)
        except (
            ValueError,
            ArithmeticError,
            LookupError,
        ):  # a value that cannot be read must not be shown
            return False
        if self.operator == "in":
            return mine in self.values
        return bool(COMPARISONS[self.operator](mine, self.values[0]))

    def expression(self, table: FromClause) -> ColumnElement[bool]:
        """Return the same condition for a query, its values bound."""
        column = table.c[self.column]
        if self.operator == "is":
            return column.is_(None)
        left = self.kind.comparable(column)
        values = [self.kind.bound(value) for value in self.values]
        if self.operator == "in":
            return left.in_(values)
        compared: ColumnElement[bool] = COMPARISONS[self.operator](left, values[0])
        return compared


def parse_condition(text: str, table: Table, allowed: Iterable[str]) -> Condition:
    """Parse one condition on a table; raise `FilterError` if it is malformed.

    `allowed` names the columns that a filter may use: with a filter on a hidden column a reader
    could find out its values by guessing.
    """
    # PostgreSQL has no text with NUL in it.
    if len(text) > MAX_LENGTH or "\0" in text:
        raise FilterError(f"A condition has at most {MAX_LENGTH} characters, none of them NUL.")
    name, name_end, rest = text.partition(".")
    verb, verb_end, value = rest.partition(".")
    if not name_end or not verb_end or verb not in OPERATORS:
        raise FilterError(
            f"{text!r} is not a condition: write column.operator.value, the operator one of "
            f"{', '.join(OPERATORS)}."
        )
    columns = set(allowed)
    if name not in columns or name not in table.c:
        raise FilterError(f"{name!r} is not a column to filter by: {', '.join(sorted(columns))}.")
    return _checked(table.c[name], verb, value)


def parse_where(
    texts: Iterable[str], table: Table, allowed: Iterable[str]
) -> tuple[Condition, ...]:
    """Parse several conditions, which must all hold."""
    texts, columns = list(texts), set(allowed)
    if len(texts) > MAX_CONDITIONS:
        raise FilterError(f"A filter has at most {MAX_CONDITIONS} conditions.")
    return tuple(parse_condition(text, table, columns) for text in texts)


def all_hold(conditions: Iterable[Condition], row: Mapping[str, Any]) -> bool:
    """Tell whether a row meets every condition."""
    return all(condition.holds(row) for condition in conditions)


def where_clause(conditions: Iterable[Condition], table: FromClause) -> ColumnElement[bool]:
    """Return all conditions as one bound expression."""
    return and_(true(), *(condition.expression(table) for condition in conditions))


def _checked(column: Column[Any], verb: str, value: str) -> Condition:
    kind = kind_of(column)
    if verb == "is":
        if value != "null":
            raise FilterError(f"{column.name}.is.{value} is unknown: only is.null is.")
        return Condition(column.name, verb, (), kind)
    if verb in ORDERING and not kind.is_ordered:
        raise FilterError(
            f"{column.name} is of type {kind.name}, which has no order: use eq or in."
        )
    texts = _items(value) if verb == "in" else [value]
    return Condition(column.name, verb, tuple(kind.parse(text) for text in texts), kind)


def _items(value: str) -> list[str]:
    if not (value.startswith("(") and value.endswith(")")):
        raise FilterError("`in` takes a list in parentheses: status.in.(paid,open).")
    inner, items, place, comma = value[1:-1], [], 0, ","
    while comma:
        match = ITEM.match(inner, place)
        if match is None:
            raise FilterError(
                'Quote an item that has a comma, a quote or a parenthesis: ("a,b",c).'
            )
        quoted, plain, comma = match.groups()
        items.append(plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        place = match.end()
        if len(items) > MAX_ITEMS:
            raise FilterError(f"`in` takes at most {MAX_ITEMS} items.")
    return items
