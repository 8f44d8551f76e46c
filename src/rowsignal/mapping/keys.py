"""Primary keys from callers, checked before any query.

A key that its column cannot hold would fail the query that it shares with other keys; a text cut to
its column's length would match another row.
"""

import json
import math
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import Mapper

from rowsignal.mapping.shapes import PrimaryKey

DIALECT: Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]  # it has no types
FLOAT4_MAX = 3.4028235677973366e38

Check = Callable[[Any, Any], str | None]  # (column type, value) -> what is wrong with it


class _WrongTypeError(Exception):
    """A value is of a Python type that the column's type does not take."""


def primary_key_of(mapper: Mapper[Any], value: object) -> PrimaryKey:
    """Return a primary key as a tuple, from a scalar, a tuple or a dict by attribute name.

    Raises `TypeError` for a value of the wrong type, `ValueError` for one that the column cannot
    hold.
    """
    return tuple(
        _checked(mapper, column, part)
        for column, part in zip(mapper.primary_key, _parts(mapper, value), strict=True)
    )


def _parts(mapper: Mapper[Any], value: object) -> tuple[Any, ...]:
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    is_json = len(names) == 1 and isinstance(_impl(mapper.primary_key[0].type), types.JSON)
    if isinstance(value, Mapping) and not is_json:
        if set(value) != set(names):
            raise ValueError(
                f"{mapper.class_.__name__} has the primary key {names}, not {sorted(value)}."
            )
        return tuple(value[name] for name in names)
    is_array = len(names) == 1 and isinstance(_impl(mapper.primary_key[0].type), types.ARRAY)
    is_several = isinstance(value, tuple | list) and not ((is_json or is_array) and value != ())
    parts = tuple(value) if is_several and isinstance(value, tuple | list) else (value,)
    if len(parts) != len(names):
        raise ValueError(
            f"{mapper.class_.__name__} has the primary key {names}: pass {len(names)} value(s),"
            f" not {len(parts)}."
        )
    if any(part is None for part in parts):
        raise ValueError(f"A primary key of {mapper.class_.__name__} cannot hold None.")
    return parts


def _checked(mapper: Mapper[Any], column: Any, value: Any) -> Any:
    name = f"{mapper.class_.__name__}.{mapper.get_property_by_column(column).key}"
    try:
        complaint = complaint_about(column.type, value)
    except _WrongTypeError as error:
        raise TypeError(f"{name} takes {error}, not {type(value).__name__}.") from None
    if complaint:
        raise ValueError(f"{name} cannot be {complaint}.")
    return _normal(column.type, value)


def _normal(type_: Any, value: Any) -> Any:
    """Return a value in the form of loaded rows, so that the session's object is found."""
    impl = _impl(type_)
    if isinstance(type_, types.TypeDecorator):
        return value
    if isinstance(impl, types.Uuid) and impl.as_uuid and isinstance(value, str):
        return UUID(value)
    if isinstance(impl, types.Integer) and type(value) is not int:
        return int(value)
    return value


def complaint_about(type_: Any, value: Any) -> str | None:
    """Return why a column of this type cannot hold a value; None if it can."""
    if isinstance(type_, types.Interval):  # a decorator, too, which PostgreSQL does not need
        return _interval(type_, value)
    if isinstance(type_, types.TypeDecorator):
        if type(type_).bind_processor is not types.TypeDecorator.bind_processor:
            return None  # such as PickleType: it converts values itself
        try:
            value = type_.process_bind_param(value, DIALECT)
        except NotImplementedError:
            pass  # it changes nothing on the way in
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            return f"{_article(value)} that its type refuses ({error})"
        return complaint_about(type_.impl_instance, value) if value is not None else "None"
    impl = _impl(type_)
    for kind, check in _CHECKS:
        if isinstance(impl, kind):
            return check(impl, value)
    return None


def _impl(type_: Any) -> Any:
    return type_.impl_instance if isinstance(type_, types.TypeDecorator) else type_


def _article(value: object) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _demand(value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    if not isinstance(value, kinds):
        raise _WrongTypeError(wanted)


def _integer(type_: Any, value: Any) -> str | None:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise _WrongTypeError("an int")
    bits = 15 if isinstance(type_, types.SmallInteger) else 31
    bits = 63 if isinstance(type_, types.BigInteger) else bits
    if not -(2**bits) <= int(value) < 2**bits:
        return f"an int outside of {-(2**bits)} to {2**bits - 1}"
    return None


def _text(type_: Any, value: Any) -> str | None:
    _demand(value, str, "a str")
    if (complaint := _unstorable(value)) is not None:
        return complaint
    length = len(value.rstrip(" ") if isinstance(type_, types.CHAR) else value)
    if type_.length is not None and length > type_.length:
        return f"a str of more than {type_.length} characters"
    return None


def _unstorable(text: str) -> str | None:
    if "\0" in text:
        return "a str with a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in text):
        return "a str with a lone surrogate"
    return None


def _enum(type_: Any, value: Any) -> str | None:
    is_member = type_.enum_class is not None and isinstance(value, type_.enum_class)
    if not is_member and not (isinstance(value, str) and value in type_.enums):
        return f"{_article(value)} outside of {', '.join(map(str, type_.enums))}"
    return None


def _uuid(_type: Any, value: Any) -> str | None:
    _demand(value, (UUID, str), "a UUID")
    try:
        UUID(str(value))
    except ValueError:
        return "a str that is no UUID"
    return None


def _boolean(_type: Any, value: Any) -> str | None:
    _demand(value, bool, "a bool")
    return None


def _float(type_: Any, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _WrongTypeError("a float")
    try:
        number = float(value)
    except OverflowError:
        return "a number out of range"
    is_real = isinstance(type_, types.REAL) or (type_.precision or 53) <= 24
    if is_real and math.isfinite(number) and abs(number) >= FLOAT4_MAX:
        return "a number out of range"
    return None


def _numeric(type_: Any, value: Any) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise _WrongTypeError("a Decimal")
    number = value if isinstance(value, Decimal) else Decimal(str(value))
    if number.is_snan():
        return "a signalling NaN"
    if number.is_nan() or type_.precision is None:
        return None
    if number.is_infinite():
        return "infinite"
    scale = type_.scale or 0
    _, digits, exponent = number.normalize().as_tuple()
    places = int(exponent)  # a finite number has no other
    if -places > scale:
        return f"a number with more than {scale} digits after the point"
    if number and len(digits) + places > type_.precision - scale:
        return f"a number with more than {type_.precision - scale} digits before the point"
    return None


def _bytes(_type: Any, value: Any) -> str | None:
    _demand(value, (bytes, bytearray, memoryview), "bytes")
    return None


def _datetime(type_: Any, value: Any) -> str | None:
    _demand(value, datetime, "a datetime")
    if not type_.timezone and value.tzinfo is not None:
        return "a datetime with a time zone"
    return None


def _date(_type: Any, value: Any) -> str | None:
    if isinstance(value, datetime):
        raise _WrongTypeError("a date")
    _demand(value, date, "a date")
    return None


def _time(type_: Any, value: Any) -> str | None:
    _demand(value, time, "a time")
    if not type_.timezone and value.tzinfo is not None:
        return "a time with a time zone"
    return None


def _interval(_type: Any, value: Any) -> str | None:
    _demand(value, timedelta, "a timedelta")
    return None


def _json(_type: Any, value: Any) -> str | None:
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    except TypeError:
        raise _WrongTypeError("what JSON can hold") from None
    except (ValueError, RecursionError):
        return "JSON with a NaN, an infinite number, or too deep"
    if "\\u0000" in text:
        return "JSON with a NUL character"
    return _unstorable(text)


def _array(type_: Any, value: Any) -> str | None:
    _demand(value, (list, tuple), "a list")
    for item in value:
        if isinstance(item, list | tuple):
            complaint = _array(type_, item)
        else:
            complaint = None if item is None else complaint_about(type_.item_type, item)
        if complaint:
            return f"a list with {complaint}"
    return None


# The first kind that fits: Enum is a String, Float a Numeric.
_CHECKS: tuple[tuple[Any, Check], ...] = (
    (types.Enum, _enum),
    (types.Integer, _integer),
    (types.String, _text),
    (types.Uuid, _uuid),
    (types.Boolean, _boolean),
    (types.Float, _float),
    (types.Numeric, _numeric),
    (types.LargeBinary, _bytes),
    (types.BINARY, _bytes),
    (types.DateTime, _datetime),
    (types.Date, _date),
    (types.Time, _time),
    (postgresql.INTERVAL, _interval),
    (types.JSON, _json),
    (types.ARRAY, _array),
)


def hashable(primary_key: PrimaryKey) -> Any:
    """Return a hashable form of a key, whose values may be JSON or arrays."""
    try:
        hash(primary_key)
    except TypeError:
        return tuple(_frozen(part) for part in primary_key)
    return primary_key


def _frozen(part: Any) -> Any:
    try:
        hash(part)
    except TypeError:
        return json.dumps(part, sort_keys=True, default=repr)
    return part
