"""Shapes: the rows, keys and columns of a model's tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, Protocol

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    Select,
    Table,
    and_,
    bindparam,
    func,
    literal_column,
    null,
    select,
)
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.sql.expression import ColumnElement, TableValuedAlias
from sqlalchemy.types import TypeEngine

PrimaryKey = tuple[Any, ...]
KeyColumns = tuple[tuple[str, ...] | None, ...]  # for each table: the key that its hints carry

QUERIES_KEPT = 200  # of a shape: criteria and columns may differ from wait to wait


class RowCriterion(Protocol):
    """A condition on a row that PostgreSQL evaluates, with parameters for each wait."""

    @property
    def types(self) -> tuple[TypeEngine[Any], ...]:
        """Return the types of the parameters."""

    def clause(self, parameters: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
        """Return the condition with columns in place of its parameters."""


@dataclass(frozen=True, slots=True)
class RowQuery:
    """The content of a query for rows: attributes, keys as triggers write them, a criterion."""

    attributes: tuple[str, ...]
    key_columns: KeyColumns = ()
    criterion: RowCriterion | None = None


@dataclass(frozen=True)
class RowShape:
    """The columns, primary key and tables of a model.

    `translation` is SQLAlchemy's `schema_translate_map`. Two shapes of the same model and
    translation are equal.
    """

    mapper: Mapper[Any]
    translation: tuple[tuple[str | None, str | None], ...] = ()

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """Return the mapped columns by attribute name; SQL expressions are not among them."""
        found: dict[str, Column[Any]] = {}
        for attribute in self.mapper.column_attrs:
            column = attribute.columns[0]
            if isinstance(column, Column):
                found[attribute.key] = column
        return found

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables whose rows make up one object; joined inheritance has several."""
        return tuple(table for table in self.mapper.tables if isinstance(table, Table))

    @property
    def schema_translate_map(self) -> Mapping[str | None, str | None]:
        """Return the translation as SQLAlchemy takes it."""
        return dict(self.translation)

    def name_of(self, table: Table) -> tuple[str | None, str]:
        """Return a table's translated schema (None: resolved by search_path) and name."""
        return self.schema_translate_map.get(table.schema, table.schema), table.name

    def names_in_database(self, attributes: Sequence[str]) -> frozenset[str]:
        """Return the database's names of the columns behind attributes."""
        names = set[str]()
        for attribute in attributes:
            prop = self.mapper.attrs[attribute]
            if isinstance(prop, ColumnProperty):
                names.update(column.name for column in prop.columns if isinstance(column, Column))
        return frozenset(names)

    @cached_property
    def eager_attributes(self) -> tuple[str, ...]:
        """Return the attributes that are loaded with the row by default."""
        return tuple(name for name in self.columns if not self.mapper.column_attrs[name].deferred)

    @cached_property
    def is_plain(self) -> bool:
        """Tell whether a loaded object consists of columns only."""
        mapper = self.mapper
        return (
            mapper.polymorphic_on is None
            and not mapper.inherits
            and len(self.columns) == len(mapper.column_attrs)
            and not mapper.class_manager.dispatch.load
            and all(one.lazy in {"select", "raise", "raise_on_sql"} for one in mapper.relationships)
        )

    def query(self, wanted: RowQuery) -> Select[Any]:
        """Return the query for rows by primary key: ordinal, values, keys, and the criterion."""
        if wanted not in self._queries:
            if len(self._queries) >= QUERIES_KEPT:
                self._queries.clear()
            self._queries[wanted] = self._make_query(wanted)
        return self._queries[wanted]

    @cached_property
    def entity_query(self) -> Select[Any]:
        """Return the query for whole objects by primary key: ordinal and object."""
        waited, same = self._waited(())
        return select(waited.c.n, self.mapper.class_).join_from(waited, self.mapper.class_, same)

    @cached_property
    def _queries(self) -> dict[RowQuery, Select[Any]]:
        return {}

    def _make_query(self, wanted: RowQuery) -> Select[Any]:
        criterion = wanted.criterion
        waited, same = self._waited(() if criterion is None else criterion.types)
        columns = [self.columns[name] for name in wanted.attributes]
        keys = [
            _key(table, names)
            for table, names in zip(self.tables, wanted.key_columns, strict=False)
        ]
        asked: list[ColumnElement[Any]] = [waited.c.n, *columns, *keys]
        if criterion is not None:
            parameters = [waited.c[f"p{number}"] for number in range(len(criterion.types))]
            asked.append(criterion.clause(parameters))
        return select(*asked).select_from(waited).join(self.mapper.persist_selectable, same)

    def _waited(
        self, parameters: Sequence[TypeEngine[Any]]
    ) -> tuple[TableValuedAlias, ColumnElement[bool]]:
        """Return the requested keys as a table, and its join condition."""
        # By ordinal, not by value: equal keys may look different (citext, char(n), 1.0 and 1.00).
        primary = self.mapper.primary_key
        arrays = {f"k{number}": column.type for number, column in enumerate(primary)}
        arrays |= {f"p{number}": type_ for number, type_ in enumerate(parameters)}
        waited = (
            func.unnest(*(_array(name, type_) for name, type_ in arrays.items()))
            .table_valued(*arrays, with_ordinality="n", name="waited")
            .render_derived()
        )
        same = [column == waited.c[f"k{number}"] for number, column in enumerate(primary)]
        return waited, and_(*same)


def _key(table: Table, names: Sequence[str] | None) -> ColumnElement[Any]:
    """Return the key of a table's row as its trigger writes it; NULL without triggers."""
    by_name = {column.name: column for column in table.columns}
    if names is None or not by_name.keys() >= set(names):
        return null()
    return key_text([by_name[name] for name in names])


def key_text(values: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    """Return the expression for a key in the form of hints: the text of a JSON array."""
    # Text: decoded by the driver, JSON would lose the difference of 1.0 and 1.00.
    marks = chain(["'['"], repeat("','"))
    parts: list[ColumnElement[Any]] = []
    for mark, value in zip(marks, values, strict=False):
        parts += literal_column(mark), func.rowsignal.key_value_v1(value)
    return func.concat(*parts, literal_column("']'"))


def _array(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=ARRAY(type_, dimensions=1))
