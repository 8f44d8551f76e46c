"""A column's JSON value becomes what the ORM would load, through the column's type."""

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from ipaddress import IPv4Address
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.mapping.column_readers import reader_of, reading_dialect


class Status(Enum):
    NEW = "new"
    PAID = "paid"


class Cents(sa.types.TypeDecorator[Decimal]):
    impl = sa.Integer
    cache_ok = True

    def process_result_value(self, value: Any, dialect: Any) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


@pytest.mark.parametrize(
    ("kind", "logged", "loaded"),
    [
        (sa.Integer(), 7, 7),
        (sa.Numeric(), Decimal("1.10"), Decimal("1.10")),
        (sa.Numeric(), 7, Decimal(7)),
        (sa.Numeric(asdecimal=False), Decimal("1.5"), 1.5),
        (sa.Float(), Decimal("1.5"), 1.5),
        (sa.Boolean(), True, True),
        (sa.Text(), "x", "x"),
        (sa.Enum(Status), "PAID", Status.PAID),
        (
            sa.DateTime(timezone=True),
            "2026-11-30T01:02:03+00:00",
            datetime(2026, 11, 30, 1, 2, 3, tzinfo=UTC),
        ),
        (sa.Uuid(), "00000000-0000-0000-0000-000000000007", UUID(int=7)),
        (postgresql.UUID(as_uuid=False), "00000000-0000-0000-0000-000000000007", str(UUID(int=7))),
        (sa.LargeBinary(), "\\x0aff", b"\x0a\xff"),
        (JSONB(), {"a": [Decimal("1.5"), None]}, {"a": [1.5, None]}),
        (
            postgresql.ARRAY(sa.Numeric()),
            [1, None, Decimal("2.50")],
            [Decimal(1), None, Decimal("2.50")],
        ),
        (Cents(), 990, Decimal("9.90")),
    ],
    ids=str,
)
def test_a_value_becomes_what_the_orm_loads(
    kind: sa.types.TypeEngine[Any], logged: Any, loaded: Any
) -> None:
    found = reader_of(kind, reading_dialect())(logged)
    assert found == loaded
    assert type(found) is type(loaded)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_options_of_the_engine_decide_as_they_do_for_the_orm(driver: str) -> None:
    url = f"postgresql+{driver}://nowhere/none"
    plain = reading_dialect(create_async_engine(url).dialect)
    assert reader_of(postgresql.INET(), plain)("10.0.0.1") == IPv4Address("10.0.0.1")
    assert reader_of(JSONB(), plain)({"a": 1}) == {"a": 1}
    options = {"native_inet_types": False, "json_deserializer": lambda text: ("read", text)}
    other = reading_dialect(create_async_engine(url, **options).dialect)
    assert reader_of(postgresql.INET(), other)("10.0.0.1") == "10.0.0.1"
    assert reader_of(JSONB(), other)({"a": Decimal("1.5")}) == ("read", '{"a": 1.5}')
