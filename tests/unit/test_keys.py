"""Primary keys as callers give them: what a column cannot hold is refused by name."""

import enum
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import (
    REAL,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    SmallInteger,
    String,
    Text,
    Time,
    TypeDecorator,
    Uuid,
)
from sqlalchemy.dialects.postgresql import CHAR, CITEXT, JSONB
from sqlalchemy.orm import DeclarativeBase, mapped_column

from rowsignal.mapping import hashable, mapper_of, primary_key_of


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Cents(TypeDecorator[Any]):
    """Money as the application knows it, an integer in the database."""

    impl = Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return int(value * 100)


class Base(DeclarativeBase):
    pass


def model_with(type_: Any) -> Any:
    name = f"Keyed{uuid4().hex}"
    columns = {"__tablename__": name.lower(), "key": mapped_column(type_, primary_key=True)}
    return mapper_of(type(name, (Base,), columns))


NOON = datetime(2026, 1, 1, 12, tzinfo=UTC).replace(tzinfo=None)
ALLOWED: list[tuple[Any, Any]] = [
    (SmallInteger(), 32767),
    (Integer(), -(2**31)),
    (BigInteger(), 2**63 - 1),
    (Text(), "üñ"),
    (String(3), "abc"),
    (CHAR(3), "ab   "),
    (CITEXT(), "Bob"),
    (Uuid(), str(UUID(int=7))),
    (Boolean(), True),
    (Float(), math.nan),
    (Float(), 1),
    (REAL(), 0.1),
    (Numeric(5, 2), Decimal("999.99")),
    (Numeric(5, 2), Decimal("1.500")),
    (Numeric(), Decimal("NaN")),
    (LargeBinary(), b"\0"),
    (DateTime(), NOON),
    (DateTime(timezone=True), datetime(2026, 1, 1, tzinfo=UTC)),
    (Date(), date(2026, 1, 1)),
    (Time(), time(1)),
    (Interval(), timedelta(1)),
    (Enum(Colour), Colour.RED),
    (Enum("red", "blue", name="colour"), "red"),
    (JSONB(), {"a": [1, None]}),
    (JSONB(), ["a"]),
    (Cents(), Decimal("9.90")),
]
REFUSED: list[tuple[Any, Any, type[Exception], str]] = [
    (SmallInteger(), 32768, ValueError, "an int outside of -32768 to 32767"),
    (Integer(), 2**31, ValueError, "an int outside of"),
    (BigInteger(), 2**63, ValueError, "an int outside of"),
    (Integer(), math.nan, TypeError, "takes an int, not float"),
    (Integer(), "1", TypeError, "takes an int, not str"),
    (Integer(), True, TypeError, "not bool"),
    (Text(), 1, TypeError, "takes a str, not int"),
    (Text(), "a\0", ValueError, "NUL"),
    (Text(), "\ud800", ValueError, "lone surrogate"),
    (String(3), "abcd", ValueError, "more than 3 characters"),
    (CHAR(3), "abcd", ValueError, "more than 3 characters"),
    (Uuid(), "x", ValueError, "no UUID"),
    (Uuid(), 1, TypeError, "takes a UUID"),
    (Boolean(), 1, TypeError, "takes a bool"),
    (Float(), "1", TypeError, "takes a float"),
    (REAL(), 1e39, ValueError, "out of range"),
    (Float(), 10**400, ValueError, "out of range"),
    (Numeric(5, 2), Decimal("1.234"), ValueError, "more than 2 digits after"),
    (Numeric(5, 2), Decimal(1000), ValueError, "more than 3 digits before"),
    (Numeric(5, 2), Decimal("Infinity"), ValueError, "infinite"),
    (Numeric(), "1", TypeError, "takes a Decimal"),
    (LargeBinary(), "x", TypeError, "takes bytes"),
    (DateTime(), datetime(2026, 1, 1, tzinfo=UTC), ValueError, "time zone"),
    (DateTime(), "2026-01-01", TypeError, "takes a datetime"),
    (Date(), NOON, TypeError, "takes a date, not datetime"),
    (Interval(), 3, TypeError, "takes a timedelta"),
    (Enum(Colour), "GREEN", ValueError, "outside of RED, BLUE"),
    (Enum("red", name="colour"), "green", ValueError, "outside of red"),
    (JSONB(), math.nan, ValueError, "NaN"),
    (JSONB(), {"a": "\0"}, ValueError, "NUL"),
    (JSONB(), "\udfff", ValueError, "lone surrogate"),
    (JSONB(), {1, 2}, TypeError, "what JSON can hold"),
    (Cents(), "x", ValueError, "refuses"),
    (Cents(), Decimal(10**9), ValueError, "an int outside of"),
]


@pytest.mark.parametrize(("type_", "value"), ALLOWED, ids=repr)
def test_a_key_that_fits_its_column_is_taken(type_: Any, value: Any) -> None:
    (key,) = primary_key_of(model_with(type_), value)
    assert key == (UUID(value) if isinstance(type_, Uuid) else value) or math.isnan(key)


@pytest.mark.parametrize(("type_", "value", "kind", "complaint"), REFUSED, ids=repr)
def test_a_key_that_does_not_fit_is_refused_by_name(
    type_: Any, value: Any, kind: type[Exception], complaint: str
) -> None:
    mapper = model_with(type_)
    with pytest.raises(kind, match=rf"{mapper.class_.__name__}\.key .*{complaint}"):
        primary_key_of(mapper, value)


def test_keys_that_cannot_be_hashed_have_a_stand_in() -> None:
    assert hashable((1, "a")) == (1, "a")
    assert hashable(({"a": 1, "b": 2},)) == hashable(({"b": 2, "a": 1},))
    assert hashable(({"a": 1},)) != hashable(({"a": True},))
