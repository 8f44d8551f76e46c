"""Columns' values as the ORM loads them, from the JSON that PostgreSQL writes of them.

The JSON value is made what asyncpg would have given; the processor of the column's type in
SQLAlchemy does the rest: TypeDecorators, enums, types of an application's own.
"""

import ipaddress
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from asyncpg import BitString
from sqlalchemy import ARRAY, types
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.dialects.postgresql.ranges import AbstractMultiRange, AbstractRange, Range
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from rowsignal.json_forms import form_of
from rowsignal.mapping.literals import (
    Parser,
    parse_array,
    parse_interval,
    parse_multirange,
    parse_range,
)

# What SQLAlchemy's processors of numbers ask for: the oids of float8 and numeric.
FLOAT8, NUMERIC = 701, 1700

form_of.register(Range, str)


def reading_dialect(dialect: Dialect | None = None) -> PGDialect_asyncpg:
    """Return asyncpg's dialect with the options of an engine's that decide on loaded values.

    So values are the same whichever driver the engine has.
    """
    return PGDialect_asyncpg(
        json_deserializer=getattr(dialect, "_json_deserializer", None),
        native_inet_types=getattr(dialect, "_native_inet_types", None),
    )  # type: ignore[no-untyped-call]


def reader_of(kind: TypeEngine[Any], dialect: PGDialect_asyncpg) -> Parser:
    """Return what reads a JSON value, not null, as a column of a type is loaded."""
    inner = stored(kind, dialect)
    parse = parser_of(inner, dialect)
    number = FLOAT8 if isinstance(inner, types.Float) else NUMERIC
    finish = kind.dialect_impl(dialect).result_processor(dialect, number)
    if finish is None:
        return parse
    finished: Parser = finish
    return finished if parse is as_it_is else lambda value: finished(parse(value))


def stored(kind: TypeEngine[Any], dialect: Dialect) -> TypeEngine[Any]:
    """Return a type as the driver has it, behind decorators and domains."""
    inner = kind.dialect_impl(dialect)
    while isinstance(inner, TypeDecorator | postgresql.DOMAIN):
        behind = (
            inner.load_dialect_impl(dialect)
            if isinstance(inner, TypeDecorator)
            else inner.data_type
        )
        inner = behind.dialect_impl(dialect)
    return inner


def parser_of(kind: TypeEngine[Any], dialect: PGDialect_asyncpg) -> Parser:
    """Return what makes of a JSON value what asyncpg gives for a stored type."""
    if isinstance(kind, ARRAY):
        return _array_parser(kind, dialect)
    if isinstance(kind, types.JSON):
        return _document_parser(dialect)
    if isinstance(kind, AbstractRange):
        return _range_parser(kind)
    if isinstance(kind, types.Uuid) and not kind.native_uuid:
        return as_it_is
    if isinstance(kind, postgresql.INET | postgresql.CIDR):
        return as_it_is if dialect._native_inet_types is False else ADDRESSES[type(kind)]
    return next((parse for found, parse in PARSERS if isinstance(kind, found)), as_it_is)


def as_it_is(value: Any) -> Any:
    """Return the value."""
    return value


def _array_parser(kind: ARRAY[Any], dialect: PGDialect_asyncpg) -> Parser:
    item = stored(kind.item_type, dialect)
    parse = parser_of(item, dialect)
    # A list in an array of documents is a document, in any other an array of the next dimension.
    depth = (kind.dimensions or 1) if isinstance(item, types.JSON) else math.inf

    def read(value: Any) -> Any:
        if isinstance(value, str):  # of a type that is not built in
            return parse_array(value, parse)
        return _items(value, parse, depth)

    return read


def _items(value: Any, parse: Parser, depth: float) -> Any:
    if isinstance(value, list) and depth > 0:
        return [_items(item, parse, depth - 1) for item in value]
    return None if value is None else parse(value)


def _document_parser(dialect: PGDialect_asyncpg) -> Parser:
    deserialize = dialect._json_deserializer
    if deserialize is None:
        return _document
    return lambda value: deserialize(json.dumps(_document(value), default=str))


def _document(value: Any) -> Any:
    """Return a JSON document as json.loads reads it: numbers with a point are floats.

    One that no float can hold, or with more digits than Python reads, stays a decimal.
    """
    if isinstance(value, dict):
        return {name: _document(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_document(item) for item in value]
    if isinstance(value, Decimal):
        number = float(value)
        return number if math.isfinite(number) else value
    return value


def _range_parser(kind: AbstractRange[Any]) -> Parser:
    name = kind.__visit_name__.lower()
    parse = BOUNDS.get(name.removesuffix("multirange").removesuffix("range"), as_it_is)
    whole = parse_multirange if isinstance(kind, AbstractMultiRange) else parse_range
    return partial(_range, parse=parse, whole=whole)


def _range(value: str, *, parse: Parser, whole: Callable[[str, Parser], Any]) -> Any:
    return whole(value, parse)


def _decimal(value: Any) -> Decimal:
    return Decimal(str(value))


def _float(value: Any) -> float:
    return float(value)


def _bytes(value: str) -> bytes:
    return bytes.fromhex(value.removeprefix("\\x"))


def _boolean(value: Any) -> bool:
    return value if isinstance(value, bool) else BOOLEANS[value]


def _moment(value: str) -> datetime:
    return ENDS[value] if value in ENDS else datetime.fromisoformat(value)


def _day(value: str) -> date:
    return ENDS[value].date() if value in ENDS else date.fromisoformat(value)


BOOLEANS = {"t": True, "f": False, "true": True, "false": False}
# What asyncpg makes of them, with or without a time zone.
ENDS = {"infinity": datetime.max, "-infinity": datetime.min}  # noqa: DTZ901
ADDRESSES: dict[type[TypeEngine[Any]], Parser] = {
    postgresql.CIDR: ipaddress.ip_network,
    postgresql.INET: lambda value: (
        ipaddress.ip_interface(value) if "/" in value else ipaddress.ip_address(value)
    ),
}
BOUNDS: dict[str, Parser] = {
    "int4": int,
    "int8": int,
    "num": _decimal,
    "ts": _moment,
    "tstz": _moment,
    "date": _day,
}
# The first that fits decides: an Enum is a String, a Float a Numeric.
PARSERS: tuple[tuple[type[TypeEngine[Any]], Parser], ...] = (
    (types.Enum, as_it_is),
    (types.Boolean, _boolean),
    (types.Float, _float),
    (types.Numeric, _decimal),
    (types.Integer, int),
    (postgresql.OID, int),
    (types.DateTime, _moment),
    (types.Date, _day),
    (types.Time, time.fromisoformat),
    (postgresql.INTERVAL, parse_interval),
    (types.LargeBinary, _bytes),
    (types.Uuid, UUID),
    (postgresql.BIT, BitString),
)
