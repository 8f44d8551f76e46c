"""Exposures: the offered tables, and the columns of their rows that clients may get."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel
from sqlalchemy.orm import Mapper

from rowsignal.json_forms import JSON_SAFE_INTEGER, json_form
from rowsignal.mapping import RowTypes, attribute_names
from rowsignal.mapping.column_readers import as_it_is
from rowsignal.sse.access.column_types import plain_type
from rowsignal.sse.access.row_keys import PROCESS_SECRET, KeyWriter, key_writer

Row = Mapping[str, Any]
Kept = dict[str, Any]
Shape = Callable[[Row, Kept], dict[str, Any]]
Writer = Callable[[Any], Any]
Offered = type[BaseModel] | Sequence[str] | None
Source = type[Any] | sa.Table

MADE = ""  # in what is kept of a row: the schema's object; no column has the empty name


@dataclass(frozen=True, eq=False)
class Exposure:
    """One offered table. Rows are JSON values by column name, as PostgreSQL writes them.

    `fields` maps the exposed columns to their names in the stream; `types` convert their values to
    those that the ORM loads, for a mapped class; `schema` is the pydantic model that makes the row,
    if there is one; `key_secret` is the secret of the digests that replace key columns that a
    reader may not see.
    """

    table: sa.Table
    fields: Mapping[str, str]
    schema: type[BaseModel] | None = None
    types: RowTypes | None = None
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
        return tuple(str(column.name) for column in self.table.primary_key)

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

    def needed(self, shown: frozenset[str]) -> frozenset[str]:
        """Return the columns without which a row of these columns cannot be shown."""
        return shown if self.schema is None else self.columns

    def shape(self, allowed: frozenset[str] | None) -> Shape:
        """Return the function that makes the row for a reader of these columns.

        Its second argument caches the row's values for readers of other columns: a value is
        converted once, for any number of readers.
        """
        shown = {
            column: name
            for column, name in self.fields.items()
            if allowed is None or column in allowed
        }
        if self.schema is not None:
            return self._through_schema(self.schema, shown if allowed is not None else None)
        writers = [(column, name, self._writer(column)) for column, name in shown.items()]

        def shape(row: Row, kept: Kept) -> dict[str, Any]:
            shaped = {}
            for column, name, write in writers:
                if column not in kept:
                    kept[column] = write(row.get(column))
                shaped[name] = kept[column]
            return shaped

        return shape

    def _writer(self, column: str) -> Writer:
        """Return the function that converts a column's JSON value to the one that is sent."""
        if self.types is None:
            return writer(_column(self.table, column).type)
        reader = self.types.columns[column]
        if reader.parse is as_it_is:
            return json_form
        if reader.parse is int:
            return _integer_writer(reader.read)
        return lambda value: json_form(reader.read(value))

    def _through_schema(self, schema: type[BaseModel], shown: Mapping[str, str] | None) -> Shape:
        include = None if shown is None else set(shown.values())

        def shape(row: Row, kept: Kept) -> dict[str, Any]:
            if MADE not in kept:
                # Validated once for all readers; what each may see is cut from the result.
                kept[MADE] = schema.model_validate(self._values(row), by_name=True)
            made: BaseModel = kept[MADE]
            dumped = made.model_dump(mode="json", by_alias=True, include=include)
            return {name: json_form(value) for name, value in dumped.items()}

        return shape

    def _values(self, row: Row) -> dict[str, Any]:
        """Return the input of the schema, by the names of its fields."""
        if self.types is None:
            return {name: row.get(column) for column, name in self.fields.items()}
        readers = self.types.columns
        return {name: readers[column].read(row.get(column)) for column, name in self.fields.items()}


def _column(table: sa.Table, name: str) -> sa.Column[Any]:
    """Return a column by its name in the database, which may not be its key."""
    return next(column for column in table.columns if column.name == name)


def writer(type_: sa.types.TypeEngine[Any]) -> Writer:
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


def _integer_writer(read: Writer) -> Writer:
    def write(value: Any) -> Any:
        # Nearly every value is its own form.
        if type(value) is int and -JSON_SAFE_INTEGER <= value <= JSON_SAFE_INTEGER:
            return value
        return json_form(read(value))

    return write


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
        # A JSON number that JavaScript reads as infinity would not survive JSON.parse.
        number = float(value)
        return number if math.isfinite(number) else str(value)
    if isinstance(value, dict):
        return {name: _write(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_write(item) for item in value]
    return json_form(value)


def exposures_of(
    tables: Mapping[Any, Offered] | Iterable[Source],
    *,
    key_secret: bytes = PROCESS_SECRET,
    dialect: sa.Dialect | None = None,
) -> dict[str, Exposure]:
    """Return the exposures of models and tables by name; `dialect` is that of their engine.

    Raises `ValueError` for a table without a primary key and for columns that are not there.
    """
    if isinstance(tables, type | sa.Table | str) or not isinstance(tables, Iterable):
        raise TypeError(
            "tables is a list of models or a mapping of models to what may leave of their rows:"
            f" write [{getattr(tables, '__name__', tables)}]."
        )
    pairs = tables.items() if isinstance(tables, Mapping) else [(table, None) for table in tables]
    made = [_exposure(source, offered, dialect) for source, offered in pairs]
    return {exposure.name: replace(exposure, key_secret=key_secret) for exposure in made}


def _exposure(source: Source, offered: Offered, dialect: sa.Dialect | None) -> Exposure:
    mapper = None if isinstance(source, sa.Table) else _mapper(source)
    table: Any = source if mapper is None else mapper.local_table
    if not table.primary_key:
        raise ValueError(f"{table} has no primary key, so its rows cannot be told apart.")
    if mapper is None:
        # SQLAlchemy's names are a kind of str that takes long to encode.
        names = {str(column.name): str(column.name) for column in table.columns}
        return Exposure(table, *_fields(table, names, offered))
    types = RowTypes.of(mapper, table, dialect)
    return Exposure(table, *_fields(table, attribute_names(mapper, table), offered), types)


def _fields(
    table: sa.Table, names: Mapping[str, str], offered: Offered
) -> tuple[dict[str, str], type[BaseModel] | None]:
    """Return what leaves of a table: its columns with their names outside, and the schema."""
    if offered is None:
        return dict(names), None
    if isinstance(offered, type):
        return {c: name for c, name in names.items() if name in offered.model_fields}, offered
    by_name = {**{c: c for c in names}, **{name: column for column, name in names.items()}}
    unknown = [name for name in offered if name not in by_name]
    if unknown:
        raise ValueError(f"{table} has no column {unknown[0]!r}; it has {', '.join(names)}.")
    return {by_name[name]: names[by_name[name]] for name in offered}, None


def _mapper(source: object) -> Mapper[Any]:
    mapper: Any = sa.inspect(source, raiseerr=False)
    if mapper is None or not isinstance(getattr(mapper, "local_table", None), sa.Table):
        raise ValueError(f"{source!r} is neither a mapped class nor a Table.")
    found: Mapper[Any] = mapper
    return found
