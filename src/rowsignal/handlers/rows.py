"""Conversion of logged values to attribute names and values of SQLAlchemy's types."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import ARRAY, Dialect, Table, types
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapper
from sqlalchemy.types import TypeDecorator, TypeEngine

from rowsignal.changes import Change
from rowsignal.mapping import Target

Parser = Callable[[Any], Any]

# The oids of float8 and numeric, which SQLAlchemy's processors of numbers expect.
FLOAT8, NUMERIC = 701, 1700


@dataclass(frozen=True, slots=True)
class RowTypes:
    """The columns of a table by their names in the database: attribute and converter."""

    columns: dict[str, tuple[str, Parser]]

    @classmethod
    def of(
        cls, engine: AsyncEngine, models: Sequence[type[Any]]
    ) -> "dict[tuple[str | None, str], RowTypes]":
        """Return the types of each table that models map to, by schema (or None) and name."""
        shapes = [Target.of(engine, model).shape for model in models]
        return {
            shape.name_of(table): cls(_columns(shape.mapper, table, engine.dialect))
            for shape in shapes
            for table in shape.tables
        }

    def typed(self, change: Change) -> Change:
        """Return a change with its row converted, except columns that the model lacks."""
        row: dict[str, Any] = {}
        for name, value in (change.row or {}).items():
            attribute, parse = self.columns.get(name, (name, _as_it_is))
            row[attribute] = None if value is None else parse(value)
        return replace(change, row=row)


def _columns(mapper: Mapper[Any], table: Table, dialect: Dialect) -> dict[str, tuple[str, Parser]]:
    attributes = {
        column.name: attribute.key
        for attribute in mapper.column_attrs
        for column in attribute.columns
        if getattr(column, "table", None) is table
    }
    return {
        column.name: (attributes.get(column.name, column.name), reader_of(column.type, dialect))
        for column in table.columns
    }


def reader_of(kind: TypeEngine[Any], dialect: Dialect) -> Parser:
    """Return a function that converts a JSON value to the value that the ORM would load.

    It converts to the driver's value first, then calls SQLAlchemy's own processor.
    """
    inner = kind.dialect_impl(dialect)
    while isinstance(inner, TypeDecorator):
        inner = inner.load_dialect_impl(dialect).dialect_impl(dialect)
    parse = parser_of(inner)
    number = FLOAT8 if isinstance(inner, types.Float) else NUMERIC
    finish = kind.dialect_impl(dialect).result_processor(dialect, number)
    if finish is None:
        return parse
    finished: Parser = finish
    return lambda value: finished(parse(value))


def parser_of(kind: TypeEngine[Any]) -> Parser:
    """Return a function that converts a JSON value to asyncpg's value for a type."""
    if isinstance(kind, ARRAY):
        parse = parser_of(kind.item_type)
        return lambda value: _items(value, parse)
    return next((parse for found, parse in PARSERS if isinstance(kind, found)), _as_it_is)


def _items(value: Any, parse: Parser) -> Any:
    if isinstance(value, list):
        return [_items(item, parse) for item in value]
    return None if value is None else parse(value)


def _as_it_is(value: Any) -> Any:
    return value


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value))


def _bytes(value: Any) -> bytes:
    return bytes.fromhex(value.removeprefix("\\x"))


def _document(value: Any) -> Any:
    """Return a JSON document with numbers as json.loads reads them."""
    if isinstance(value, dict):
        return {name: _document(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_document(item) for item in value]
    return float(value) if isinstance(value, Decimal) else value


def _uuid(value: Any) -> UUID:
    return UUID(value)


PARSERS: tuple[tuple[type[TypeEngine[Any]], Parser], ...] = (
    (types.Enum, _as_it_is),
    (types.Float, float),
    (types.Numeric, _decimal),
    (types.Integer, int),
    (types.DateTime, datetime.fromisoformat),
    (types.Date, date.fromisoformat),
    (types.Time, time.fromisoformat),
    (types.LargeBinary, _bytes),
    (types.Uuid, _uuid),
    (types.JSON, _document),
    (JSONB, _document),
)
