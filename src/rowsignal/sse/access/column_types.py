"""Kinds of column types: how a filter reads, compares and binds their values."""

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

from sqlalchemy import Column, ColumnElement, bindparam, case, cast, func
from sqlalchemy import types as sql
from sqlalchemy.dialects import postgresql

from rowsignal.exceptions import FilterError

MAX_DIGITS = 400
REAL_BITS = 24


@dataclass(frozen=True, slots=True)
class Number:
    """A number that may be NaN, ordered as PostgreSQL orders it (manual, 8.1.3)."""

    value: Any

    def rank(self) -> tuple[bool, Any]:
        """Return the sort key: every number is below NaN."""
        is_nan = self.value != self.value  # only NaN differs from itself
        return (is_nan, 0 if is_nan else self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Number) and self.rank() == other.rank()

    def __hash__(self) -> int:
        return hash(self.rank())

    def __lt__(self, other: "Number") -> bool:
        return self.rank() < other.rank()

    def __le__(self, other: "Number") -> bool:
        return self.rank() <= other.rank()

    def __gt__(self, other: "Number") -> bool:
        return self.rank() > other.rank()

    def __ge__(self, other: "Number") -> bool:
        return self.rank() >= other.rank()


TIME_OF_DAY = re.compile(
    r"(\d\d):([0-5]\d)(?::([0-5]\d)(?:\.(\d{1,6}))?)?(Z|[+-]\d\d(?::?[0-5]\d(?::[0-5]\d)?)?)?",
    re.ASCII,
)
DAY = 24 * 3600 * 10**6
MAX_OFFSET = 16 * 3600  # of PostgreSQL


@dataclass(frozen=True, slots=True, order=True)
class TimeOfDay:
    """A `time` or `timetz`, ordered as PostgreSQL orders it: by the instant, then by the zone.

    `instant` counts microseconds of UTC, `west` the seconds that the zone is west of it, None
    without a zone; `text` is how it was written. Python's own `time` has no 24:00.
    """

    instant: int
    west: int | None
    text: str = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the ISO form; raise `ValueError` for any other text."""
        found = TIME_OF_DAY.fullmatch(text)
        if found is None:
            raise ValueError("not a time of day")
        hours, minutes, seconds, fraction, zone = found.groups()
        clock = (int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)) * 10**6
        clock += int((fraction or "").ljust(6, "0"))
        west = None if zone is None else -_offset(zone)
        if clock > DAY or abs(west or 0) >= MAX_OFFSET:
            raise ValueError("no time of a day")
        return cls(clock + (west or 0) * 10**6, west, text)


def _offset(zone: str) -> int:
    digits = re.sub(r"\D", "", zone).ljust(6, "0")
    seconds = int(digits[:2]) * 3600 + int(digits[2:4]) * 60 + int(digits[4:6])
    return -seconds if zone.startswith("-") else seconds


@dataclass(frozen=True, slots=True)
class Kind:
    """A family of column types: `read` converts JSON values, `accept` checks filter values."""

    name: str
    read: Callable[[Any], Any]
    type_: sql.TypeEngine[Any] = field(compare=False)
    accept: Callable[[Any], bool] = lambda _: True
    is_ordered: bool = True
    is_text: bool = False
    labels: tuple[str, ...] = ()

    def parse(self, text: str) -> Any:
        """Read a value from a filter's text; raise `FilterError` when it is not of this kind."""
        try:
            if "\0" in text:
                raise ValueError("NUL")  # noqa: TRY301 -- one answer for all that is no value
            text.encode()  # half a surrogate pair is no text
            value = self.read(text)
            is_accepted = self.accept(value)
        except (ValueError, ArithmeticError, LookupError) as error:
            raise FilterError(f"{text!r} is not a value of type {self.name}.") from error
        if not is_accepted:
            among = f"; it has {', '.join(self.labels)}" if self.labels else ""
            raise FilterError(f"{text!r} is out of the range of type {self.name}{among}.")
        return value

    def comparable(self, column: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the column for a comparison: text without the database's collation."""
        if not self.is_text:
            return column
        plain: ColumnElement[Any] = cast(column, sql.Text())
        if (
            self.name == "enum"
        ):  # a cast would run code of the type's owner with the rights of this process
            plain = case((column.is_not(None), func.format("%s", column)))
        return plain.collate("C")

    def bound(self, value: Any) -> ColumnElement[Any]:
        """Return a bound parameter."""
        if isinstance(value, TimeOfDay):
            return cast(bindparam(None, value.text, type_=sql.Text(), unique=True), self.type_)
        raw = value.value if isinstance(value, Number) else value
        return bindparam(None, raw, type_=self.type_, unique=True)


def plain_type(type_: sql.TypeEngine[Any]) -> sql.TypeEngine[Any]:
    """Return the stored type behind decorators and domains."""
    while isinstance(type_, sql.TypeDecorator | postgresql.DOMAIN):
        type_ = type_.impl_instance if isinstance(type_, sql.TypeDecorator) else type_.data_type
    return type_


def kind_of(column: Column[Any]) -> Kind:
    """Return the kind of a column; raise `FilterError` for types that cannot be filtered by."""
    type_ = plain_type(column.type)
    for family, make in FAMILIES:
        if isinstance(type_, family):
            return make(type_)
    raise FilterError(f"{column.name} is of type {type_}, which cannot be filtered by.")


def _integer(type_: sql.TypeEngine[Any]) -> Kind:
    bits = 63 if isinstance(type_, sql.BigInteger) else 31
    bits = 15 if isinstance(type_, sql.SmallInteger) else bits
    return Kind("integer", _read_integer, type_, lambda value: -(2**bits) <= value < 2**bits)


def _read_integer(value: Any) -> int:
    if isinstance(value, str) and not value.lstrip("-").isascii():
        raise ValueError("other digits than 0 to 9")
    return int(value)


def _numeric(_: sql.TypeEngine[Any]) -> Kind:
    def accept(number: Number) -> bool:
        value: Decimal = number.value
        if not value.is_finite():
            return value.is_qnan()
        return value == 0 or abs(value.adjusted()) < MAX_DIGITS

    return Kind("numeric", lambda value: Number(Decimal(str(value))), sql.Numeric(), accept)


def _float(type_: sql.TypeEngine[Any]) -> Kind:
    if isinstance(type_, sql.REAL) or (getattr(type_, "precision", None) or 53) <= REAL_BITS:
        return Kind("real", lambda value: Number(_rounded(float(value))), sql.REAL())
    return Kind("float", lambda value: Number(float(value)), sql.Double())


def _rounded(value: float) -> float:
    rounded: float = struct.unpack("f", struct.pack("f", value))[0]
    return rounded


def _text(type_: sql.TypeEngine[Any]) -> Kind:
    if isinstance(type_, sql.CHAR | postgresql.CITEXT):
        raise FilterError(f"{type_} has an equality of its own and cannot be filtered by.")
    return Kind("text", str, sql.Text(), is_text=True)


def _enum(type_: sql.TypeEngine[Any]) -> Kind:
    labels = tuple(getattr(type_, "enums", ()))
    accept = frozenset(labels).__contains__
    return Kind("enum", str, sql.Text(), accept, is_ordered=False, is_text=True, labels=labels)


def _boolean(type_: sql.TypeEngine[Any]) -> Kind:
    names = {"true": True, "false": False}
    return Kind("boolean", lambda value: names[str(value).lower()], type_, is_ordered=False)


def _uuid(_: sql.TypeEngine[Any]) -> Kind:
    return Kind("uuid", lambda value: UUID(str(value)), sql.Uuid())


def _moment(type_: sql.TypeEngine[Any]) -> Kind:
    if getattr(type_, "timezone", False):
        # Python has no infinity and no years before 1: its ends stand for them.
        latest, earliest = datetime.max.replace(tzinfo=UTC), datetime.min.replace(tzinfo=UTC)
    else:
        latest, earliest = datetime.max, datetime.min  # noqa: DTZ901 -- the column has no zone

    def read(value: str) -> datetime:
        if value in {"infinity", "-infinity"} or value.endswith(" BC"):
            return latest if value == "infinity" else earliest
        moment = datetime.fromisoformat(value)
        if (moment.tzinfo is None) != (latest.tzinfo is None):
            raise ValueError("an offset is missing or too much")
        return moment if moment.tzinfo is None else moment.astimezone(UTC)

    return Kind("timestamp", read, type_, lambda value: value not in {latest, earliest})


def _date(type_: sql.TypeEngine[Any]) -> Kind:
    def read(value: str) -> date:
        if value in {"infinity", "-infinity"} or value.endswith(" BC"):
            return date.max if value == "infinity" else date.min
        return date.fromisoformat(value)

    return Kind("date", read, type_, lambda value: value not in {date.max, date.min})


def _time(type_: sql.TypeEngine[Any]) -> Kind:
    has_zone = bool(getattr(type_, "timezone", False))

    def read(value: str) -> TimeOfDay:
        moment = TimeOfDay.parse(value)
        if (moment.west is None) == has_zone:
            raise ValueError("an offset is missing or too much")
        return moment

    return Kind("timetz" if has_zone else "time", read, type_)


# The first family that fits decides: an Enum is a String, too.
FAMILIES: tuple[tuple[type[sql.TypeEngine[Any]], Callable[[sql.TypeEngine[Any]], Kind]], ...] = (
    (sql.Enum, _enum),
    (sql.Boolean, _boolean),
    (sql.Integer, _integer),
    (sql.Float, _float),
    (sql.Numeric, _numeric),
    (sql.String, _text),
    (sql.Uuid, _uuid),
    (sql.DateTime, _moment),
    (sql.Date, _date),
    (sql.Time, _time),
)
