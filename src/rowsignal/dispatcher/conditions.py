"""Conditions that end a wait: a difference, a predicate, a row that appears or disappears."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy import Column, ColumnElement, Numeric, Select, String, Table, Text, types
from sqlalchemy.sql import coercions, roles, visitors
from sqlalchemy.sql.elements import BindParameter
from sqlalchemy.types import TypeEngine

from rowsignal.dispatcher.instances import build_instance
from rowsignal.dispatcher.row_query import RowState
from rowsignal.mapping import RowShape

SCALARS = (
    *(types.Integer, types.Numeric, types.Float, types.String, types.Boolean, types.Uuid),
    *(types.Date, types.DateTime, types.Time, types.Interval),
)
Until = Callable[[Any], Any] | ColumnElement[bool]


class Condition(Protocol):
    """Base of the conditions of waits. An error raised by a condition ends its wait."""

    @property
    def needs_row(self) -> bool:
        """Tell whether a missing row is an error."""

    @property
    def is_comparing(self) -> bool:
        """Tell whether the wait compares the row with the values seen last."""

    def is_met(self, found: RowState | None) -> bool:
        """Tell whether the condition holds for a row that was read."""


@dataclass(frozen=True, slots=True)
class Changes:
    """The row differs from the values seen last; with `is_patient` it may be missing at first."""

    is_patient: bool = False
    is_comparing: bool = True

    @property
    def needs_row(self) -> bool:
        """Tell whether a missing row is an error."""
        return not self.is_patient

    def is_met(self, found: RowState | None) -> bool:  # noqa: ARG002 -- differences decide
        """Return False: the comparison decides."""
        return False


@dataclass(frozen=True, slots=True)
class Appears:
    """The row exists."""

    needs_row: bool = False
    is_comparing: bool = False

    def is_met(self, found: RowState | None) -> bool:
        """Tell whether the row exists."""
        return found is not None


@dataclass(frozen=True, slots=True)
class Disappears:
    """The row does not exist."""

    needs_row: bool = False
    is_comparing: bool = False

    def is_met(self, found: RowState | None) -> bool:
        """Tell whether the row is missing."""
        return found is None


@dataclass(frozen=True, slots=True)
class Satisfies:
    """A function returns true for the row as a detached object."""

    shape: RowShape
    predicate: Callable[[Any], Any]
    needs_row: bool = True
    is_comparing: bool = False

    def is_met(self, found: RowState | None) -> bool:
        """Return what the function returned for the row."""
        return found is not None and self.accepts(build_instance(self.shape, found))

    def accepts(self, instance: Any) -> bool:
        """Call the function with an object."""
        answer = self.predicate(instance)
        if inspect.isawaitable(answer):
            if inspect.iscoroutine(answer):
                answer.close()
            raise TypeError("until cannot be asynchronous: pass a function that returns a bool.")
        return bool(answer)


@dataclass(frozen=True, slots=True)
class Matches:
    """An SQL criterion is true; PostgreSQL evaluates it in the query that reads the row."""

    criterion: "Criterion"
    parameters: tuple[Any, ...]
    needs_row: bool = True
    is_comparing: bool = False

    def is_met(self, found: RowState | None) -> bool:
        """Return the result of the criterion."""
        return found is not None and found.holds is True


class Criterion:
    """An SQL condition without the values of its parameters.

    Criteria that differ only in these values are equal, so that one query serves their waits.
    """

    __slots__ = ("_binds", "_clause", "_key", "types")

    def __init__(
        self, clause: ColumnElement[bool], binds: Sequence[BindParameter[Any]], key: object
    ) -> None:
        self._clause = clause
        self._binds = {bind.key: number for number, bind in enumerate(binds)}
        self._key = key
        self.types: tuple[TypeEngine[Any], ...] = tuple(_wide(bind.type) for bind in binds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Criterion) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    def clause(self, parameters: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition with columns in place of its parameters."""

        def replace(element: Any, **_: object) -> Any:
            if isinstance(element, BindParameter) and element.key in self._binds:
                return parameters[self._binds[element.key]]
            return None

        replaced: ColumnElement[bool] = visitors.replacement_traverse(self._clause, {}, replace)
        return replaced


def condition_of(shape: RowShape, until: Until) -> Satisfies | Matches:
    """Return the condition for `until`: a function of the object, or an SQL criterion."""
    # A comparison of a loaded object, say order.id == 1, is a bool already.
    if isinstance(until, bool):
        raise TypeError("until is a bool: pass a function, such as lambda order: order.is_paid.")
    if not isinstance(until, ColumnElement) and not hasattr(until, "__clause_element__"):
        if not callable(until):
            raise TypeError(
                f"until cannot be a {type(until).__name__}: pass a function of the object or an SQL"
                " criterion, such as Order.status == 'paid'."
            )
        if inspect.iscoroutinefunction(until):
            raise TypeError("until cannot be asynchronous: pass a function that returns a bool.")
        return Satisfies(shape, until)
    clause: ColumnElement[bool] = coercions.expect(roles.WhereHavingRole, until)
    _refuse_foreign(shape, clause)
    return _match(clause)


def attributes_in(shape: RowShape, until: Until) -> tuple[str, ...] | None:
    """Return the attributes that a criterion reads; None for a function, which may read all."""
    if not isinstance(until, ColumnElement) and not hasattr(until, "__clause_element__"):
        return None
    clause = coercions.expect(roles.WhereHavingRole, until)
    used = set(map(_place, _columns(clause)))
    return tuple(name for name, column in shape.columns.items() if _place(column) in used)


def _place(column: Any) -> tuple[str, str]:
    return column.table.key, column.name


def _columns(clause: Any) -> Iterator[Any]:
    return (element for element in visitors.iterate(clause) if isinstance(element, Column))


def _refuse_foreign(shape: RowShape, clause: ColumnElement[bool]) -> None:
    name = shape.mapper.class_.__name__
    tables = {table.key for table in shape.tables}
    for element in visitors.iterate(clause):
        table = getattr(element, "table", None) if isinstance(element, Column) else element
        is_foreign = isinstance(table, Table) and table.key not in tables
        is_aliased = getattr(element, "__visit_name__", "") in {"alias", "subquery", "cte"}
        if isinstance(element, Select) or is_foreign or is_aliased:
            raise ValueError(f"until can use columns of {name} itself only, no other tables.")


def _match(clause: ColumnElement[bool]) -> Matches:
    cache_key = (
        clause._generate_cache_key()
    )  # the key by which SQLAlchemy itself compares statements
    binds = [element for element in visitors.iterate(clause) if isinstance(element, BindParameter)]
    binds = list({bind.key: bind for bind in binds}.values())
    # SQLAlchemy cannot compare such clauses: each has a query of its own.
    if cache_key is None:
        return Matches(Criterion(clause, (), id(clause)), ())
    # Their values become columns of one query for all waits with this criterion.
    single = [bind for bind in binds if _can_be_column(bind)]
    fixed = tuple(repr(bind.effective_value) for bind in binds if not _can_be_column(bind))
    criterion = Criterion(clause, single, (cache_key.key, fixed))
    return Matches(criterion, tuple(bind.effective_value for bind in single))


def _can_be_column(bind: BindParameter[Any]) -> bool:
    """Tell whether a parameter can be a column of values: not a list, not a path into JSON."""
    return not bind.expanding and isinstance(bind.type, SCALARS)


def _wide(type_: TypeEngine[Any]) -> TypeEngine[Any]:
    """Return the type without length and precision, so that 'abcd' is not cut to `varchar(3)`."""
    if type(type_) in {String, types.VARCHAR, types.Unicode}:
        return Text()
    if type(type_) in {Numeric, types.NUMERIC, types.DECIMAL}:
        return Numeric()
    return type_
