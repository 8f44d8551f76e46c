"""Exposures: the offered tables, and the columns of their rows that clients may get."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel

from rowsignal.changes import browser_safe
from rowsignal.sse.access.column_types import plain_type
from rowsignal.sse.access.row_keys import PROCESS_SECRET, KeyWriter, key_writer

Row = Mapping[str, Any]
Shape = Callable[[Row], dict[str, Any]]
Offered = type[BaseModel] | Sequence[str] | None
Source = type[Any] | sa.Table


@dataclass(frozen=True, eq=False)
class Exposure:
    """One offered table. Rows are JSON values by column name, as PostgreSQL writes them.

    `fields` maps the exposed columns to their names in the stream; `schema` is the pydantic model
    that makes the row, if there is one; `key_secret` is the secret of the digests that replace key
    columns that a reader may not see.
    """

    table: sa.Table
    fields: Mapping[str, str]
    schema: type[BaseModel] | None = None
    key_secret: bytes = field(default=PROCESS_SECRET, repr=False)

    @cached_property
    def name(self) -> str:
        """The table's name with its schema."""
        return ".".join(self.full_name)

    @property
    def full_name(self) -> tuple[str, str]:
        """The table's schema and name; the default schema is `public`."""
        return self.table.schema or "public", self.table.name

    @cached_property
    def key(self) -> tuple[str, ...]:
        """The names of the primary-key columns, in key order."""
        return tuple(column.name for column in self.table.primary_key)

    @cached_property
    def columns(self) -> frozenset[str]:
        """The names of the exposed columns."""
        return frozenset(self.fields)

    def key_of(self, row: Row) -> dict[str, Any]:
        """Return a row's key in the form of changes: numbers with a point are text."""
        values = {name: row[name] for name in self.key}
        return {
            n: str(value) if isinstance(value, Decimal) else value for n, value in values.items()
        }

    def key_writer(self, shown: frozenset[str]) -> KeyWriter:
        """Return the function that makes the key for readers of these columns."""
        return key_writer(self.name, self.key, shown, self.key_secret)

    def shape(self, allowed: frozenset[str] | None) -> Shape:
        """Return the function that makes the row for a reader of these columns."""
        shown = {
            column: name
            for column, name in self.fields.items()
            if allowed is None or column in allowed
        }
        writers = {column: writer(self.table.c[column].type) for column in shown}
        if self.schema is None:
            return lambda row: {name: writers[name](row.get(name)) for name in shown}
        return self._through_schema(self.schema, shown if allowed is not None else None)

    def _through_schema(self, schema: type[BaseModel], shown: Mapping[str, str] | None) -> Shape:
        include = None if shown is None else set(shown.values())

        def shape(row: Row) -> dict[str, Any]:
            values = {field: row.get(column) for column, field in self.fields.items()}
            made = schema.model_validate(values, by_name=True)
            dumped = made.model_dump(mode="json", by_alias=True, include=include)
            return {name: browser_safe(value) for name, value in dumped.items()}

        return shape


def writer(type_: sa.types.TypeEngine[Any]) -> Callable[[Any], Any]:
    """Return the function that converts a column's JSON value without loss of digits."""
    stored = plain_type(type_)
    if isinstance(stored, sa.ARRAY):
        item = writer(stored.item_type)

        def write(value: Any) -> Any:
            return [write(part) for part in value] if isinstance(value, list) else item(value)

        return write
    if isinstance(stored, sa.Float):
        return _write_float
    return _write_exact if isinstance(stored, sa.Numeric) else _write


def _write_exact(value: Any) -> Any:
    if value is None:
        return None
    return format(value, "f") if isinstance(value, Decimal) else str(value)


def _write_float(value: Any) -> Any:
    """Write NaN and infinities as text: JSON has no form for them (RFC 8259, 6)."""
    if value is None or value in {"NaN", "Infinity", "-Infinity"}:
        return value
    return float(value)


def _write(value: Any) -> Any:
    if isinstance(value, Decimal):
        number = float(value)
        return number if math.isfinite(number) else str(value)
    if isinstance(value, dict):
        return {name: _write(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_write(item) for item in value]
    return browser_safe(value)


def exposures_of(
    tables: Mapping[Any, Offered] | Iterable[Source], *, key_secret: bytes = PROCESS_SECRET
) -> dict[str, Exposure]:
    """Return the exposures of models and tables by name.

    Raises `ValueError` for a table without a primary key and for columns that are not there.
    """
    if isinstance(tables, type | sa.Table | str) or not isinstance(tables, Iterable):
        raise TypeError(
            "tables is a list of models or a mapping of models to what may leave of their rows:"
            f" write [{getattr(tables, '__name__', tables)}]."
        )
    pairs = tables.items() if isinstance(tables, Mapping) else [(table, None) for table in tables]
    made = [_exposure(source, offered) for source, offered in pairs]
    return {exposure.name: replace(exposure, key_secret=key_secret) for exposure in made}


def _exposure(source: Source, offered: Offered) -> Exposure:
    table, names = _table(source)
    if not table.primary_key:
        raise ValueError(f"{table} has no primary key, so its rows cannot be told apart.")
    if offered is None:
        return Exposure(table, {column: column for column in names})
    if isinstance(offered, type):
        fields = {column: name for column, name in names.items() if name in offered.model_fields}
        return Exposure(table, fields, offered)
    by_name = {**{name: column for column, name in names.items()}, **{c: c for c in names}}
    unknown = [name for name in offered if name not in by_name]
    if unknown:
        raise ValueError(f"{table} has no column {unknown[0]!r}; it has {', '.join(names)}.")
    return Exposure(table, {by_name[name]: by_name[name] for name in offered})


def _table(source: Source) -> tuple[sa.Table, dict[str, str]]:
    """Return the table and, by column name, the names of its model's attributes."""
    if isinstance(source, sa.Table):
        return source, {column.name: column.name for column in source.columns}
    mapper = sa.inspect(source, raiseerr=False)
    table = getattr(mapper, "local_table", None)
    if mapper is None or not isinstance(table, sa.Table):
        raise ValueError(f"{source!r} is neither a mapped class nor a Table.")
    attributes = {
        column.name: attribute.key
        for attribute in mapper.column_attrs
        for column in attribute.columns
        if isinstance(column, sa.Column) and column.table is table
    }
    return table, attributes
