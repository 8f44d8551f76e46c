"""Many waited-for rows in one query, each as it is committed now."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    func,
    null,
    select,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import ColumnProperty, Mapper
from sqlalchemy.sql.expression import ColumnElement

from rowsignal.payload import Key, decode_json, parse_key

PrimaryKey = tuple[Any, ...]
Values = tuple[Any, ...]
KeyColumns = tuple[tuple[str, ...] | None, ...]  # for each table: the key that its hints carry

ROWS_A_QUERY = 10_000


@dataclass(frozen=True, slots=True)
class Found:
    """A row as it was found: its column values, and its key in the words of each table's trigger.

    `keys` is empty where it was not asked for, and None stands for a table that has no hints.
    """

    values: Values
    keys: tuple[Key | None, ...]


@dataclass(frozen=True)
class RowShape:
    """What there is to read of a model: columns, primary key and tables.

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
        """Return a table's schema (None: found by search_path) and name, translated."""
        return self.schema_translate_map.get(table.schema, table.schema), table.name

    def names_in_database(self, attributes: Sequence[str]) -> frozenset[str]:
        """Return the database's names of the columns behind attributes."""
        names = set[str]()
        for attribute in attributes:
            prop = self.mapper.attrs[attribute]
            if isinstance(prop, ColumnProperty):
                names.update(column.name for column in prop.columns if isinstance(column, Column))
        return frozenset(names)

    def query(self, key_columns: KeyColumns = ()) -> Select[Any]:
        """Return the query for rows by primary key, and for their keys as triggers say them."""
        if key_columns not in self._queries:
            self._queries[key_columns] = self._make_query(key_columns)
        return self._queries[key_columns]

    @cached_property
    def _queries(self) -> dict[KeyColumns, Select[Any]]:
        return {}

    def _make_query(self, key_columns: KeyColumns) -> Select[Any]:
        # By ordinal, not by value: equal keys may look different (citext, char(n), 1.0 and 1.00).
        primary = self.mapper.primary_key
        names = [f"k{number}" for number in range(len(primary))]
        waited = (
            func.unnest(
                *(_array(name, column) for name, column in zip(names, primary, strict=True))
            )
            .table_valued(*names, with_ordinality="n", name="waited")
            .render_derived()
        )
        same: list[ColumnElement[bool]] = [
            column == waited.c[name] for name, column in zip(names, primary, strict=True)
        ]
        keys = [_key(table, names) for table, names in zip(self.tables, key_columns, strict=False)]
        return (
            select(waited.c.n, *self.columns.values(), *keys)
            .select_from(waited)
            .join(self.mapper.persist_selectable, and_(*same))
        )


def _key(table: Table, names: Sequence[str] | None) -> ColumnElement[Any]:
    """Return the key of a table's row in the words of its trigger, NULL where it has none."""
    by_name = {column.name: column for column in table.columns}
    if names is None or not by_name.keys() >= set(names):
        return null()
    # Cast to text: the driver would decode JSON, and lose the difference of 1.0 and 1.00.
    key = func.rowsignal.key_v1(func.row(*(by_name[name] for name in names)))
    return key.cast(postgresql.TEXT)


def _array(name: str, column: ColumnElement[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=ARRAY(column.type))


async def read_rows(
    connection: AsyncConnection,
    shape: RowShape,
    primary_keys: Sequence[PrimaryKey],
    *,
    key_columns: KeyColumns = (),
) -> list[Found | None]:
    """Return the rows with these primary keys, in their order; None where there is none."""
    found: list[Found | None] = [None] * len(primary_keys)
    statement = shape.query(key_columns)
    options = {"schema_translate_map": shape.schema_translate_map} if shape.translation else {}
    for start in range(0, len(primary_keys), ROWS_A_QUERY):
        part = primary_keys[start : start + ROWS_A_QUERY]
        parameters = {f"k{n}": list(values) for n, values in enumerate(zip(*part, strict=True))}
        result = await connection.execute(statement, parameters, execution_options=options)
        for row in result:
            found[start + row[0] - 1] = _found(row, len(shape.columns))
    return found


def _found(row: Row[Any], width: int) -> Found:
    texts = row[width + 1 :]
    keys = tuple(None if text is None else parse_key(decode_json(text)) for text in texts)
    return Found(tuple(row[1 : width + 1]), keys)
