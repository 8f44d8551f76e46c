"""A mapped class of many types, under other names than its columns, and a row of it."""

import dataclasses
import enum
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import IPv4Address, IPv4Interface, IPv6Network
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    pass


class Status(enum.Enum):
    NEW = "new"
    PAID = "paid"


@dataclasses.dataclass(frozen=True)
class Money:
    amount: Decimal
    currency: str


class Cents(sa.TypeDecorator[Decimal]):
    """Decimals as whole cents."""

    impl = sa.Integer
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> int | None:
        return None if value is None else int(value * 100)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Decimal | None:
        return None if value is None else Decimal(value) / 100


class Price(sa.TypeDecorator[Money]):
    """Money as a document; negative amounts cannot be loaded."""

    impl = pg.JSONB
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> Any:
        if value is None:
            return None
        return {"amount": str(value.amount), "currency": value.currency}

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Money | None:
        if value is None:
            return None
        if value["amount"].startswith("-"):
            raise ValueError("a negative price")
        return Money(Decimal(value["amount"]), value["currency"])


class Reversed(sa.types.UserDefinedType[str]):
    """A type of an application's own, which reads what the driver gives by itself."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "varchar"

    def bind_processor(self, dialect: sa.Dialect) -> Any:
        return lambda value: None if value is None else value[::-1]

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> Any:
        return lambda value: None if value is None else value[::-1]


class Item(Base):
    __tablename__ = "items"

    id: Mapped[int] = mapped_column("item_id", primary_key=True)
    status: Mapped[Status] = mapped_column("state")
    past: Mapped[list[Status] | None] = mapped_column("past_states", pg.ARRAY(sa.Enum(Status)))
    price: Mapped[Decimal | None] = mapped_column("price_in_cents", Cents)
    prices: Mapped[list[Decimal] | None] = mapped_column(pg.ARRAY(Cents))
    cost: Mapped[Money | None] = mapped_column(Price(none_as_null=True))
    word: Mapped[str | None] = mapped_column(Reversed)
    exact: Mapped[Decimal | None] = mapped_column(sa.Numeric)
    rounded: Mapped[float | None] = mapped_column(sa.Numeric(asdecimal=False))
    ratio: Mapped[float | None]
    small: Mapped[int | None] = mapped_column(sa.SmallInteger)
    big: Mapped[int | None] = mapped_column(sa.BigInteger)
    is_new: Mapped[bool | None]
    flags: Mapped[list[bool] | None] = mapped_column(pg.ARRAY(sa.Boolean))
    at: Mapped[datetime | None] = mapped_column(sa.DateTime(timezone=True))
    local: Mapped[datetime | None]
    day: Mapped[date | None]
    clock: Mapped[time | None]
    zoned: Mapped[time | None] = mapped_column(sa.Time(timezone=True))
    lasts: Mapped[timedelta | None]
    token: Mapped[UUID | None]
    token_text: Mapped[str | None] = mapped_column(sa.Uuid(as_uuid=False))
    token_chars: Mapped[UUID | None] = mapped_column(sa.Uuid(native_uuid=False))
    raw: Mapped[bytes | None]
    document: Mapped[Any] = mapped_column(pg.JSONB, nullable=True)
    documents: Mapped[list[Any] | None] = mapped_column(pg.ARRAY(pg.JSONB, dimensions=1))
    tree: Mapped[Any] = mapped_column(sa.JSON, nullable=True)
    matrix: Mapped[list[list[int]] | None] = mapped_column(pg.ARRAY(sa.Integer))
    moments: Mapped[list[datetime] | None] = mapped_column(pg.ARRAY(sa.DateTime(timezone=True)))
    host: Mapped[Any] = mapped_column(pg.INET, nullable=True)
    network: Mapped[Any] = mapped_column(pg.CIDR, nullable=True)
    bits: Mapped[Any] = mapped_column(pg.BIT(4), nullable=True)
    span: Mapped[Any] = mapped_column(pg.INT4RANGE, nullable=True)
    stay: Mapped[Any] = mapped_column(pg.TSTZRANGE, nullable=True)
    days: Mapped[Any] = mapped_column(pg.DATERANGE, nullable=True)
    spans: Mapped[Any] = mapped_column(pg.NUMMULTIRANGE, nullable=True)
    search: Mapped[Any] = mapped_column(pg.TSVECTOR, nullable=True)


class Other(Base):
    __tablename__ = "others"

    id: Mapped[int] = mapped_column(primary_key=True)


VALUES: Mapping[str, Any] = {
    "status": Status.PAID,
    "past": [Status.NEW, None, Status.PAID],
    "price": Decimal("9.90"),
    "prices": [Decimal("9.90"), None],
    "cost": Money(Decimal("9.90"), "EUR"),
    "word": "drow",
    "exact": Decimal("1234567890123456789.0123456789"),
    "rounded": 1.5,
    "ratio": 0.1,
    "small": -32768,
    "big": 2**62,
    "is_new": False,
    "flags": [True, None, False],
    "at": datetime(2026, 11, 30, 1, 2, 3, 400, UTC),
    "local": datetime(2026, 11, 30, 1, 2, 3),  # noqa: DTZ001 -- the column has no zone
    "day": date(2026, 11, 30),
    "clock": time(1, 2, 3, 4),
    "zoned": time(1, 2, 3, tzinfo=UTC),
    "lasts": timedelta(days=400, hours=-5, microseconds=7),
    "token": UUID(int=7),
    "token_text": str(UUID(int=8)),
    "token_chars": UUID(int=9),
    "raw": b"\x00\xff",
    "document": {"n": 1.5, "big": 2**70, "items": [None, True, "x"]},
    "documents": [[1, [2]], {"a": 1}, None],
    "tree": ["x", {"y": 2.25}],
    "matrix": [[1, 2], [3, 4]],
    "moments": [datetime(2026, 1, 1, tzinfo=UTC)],
    "host": IPv4Interface("10.0.0.1/8"),
    "network": IPv6Network("2001:db8::/32"),
    "bits": pg.BitString("1010") if hasattr(pg, "BitString") else None,
    "span": pg.Range(1, 5),
    "stay": pg.Range(datetime(2026, 1, 1, tzinfo=UTC), None),
    "days": pg.Range(date(2026, 1, 1), date(2026, 2, 1)),
    "spans": [pg.Range(Decimal("1.5"), Decimal(2)), pg.Range(Decimal(7), None)],
}
HOST = IPv4Address("10.0.0.1")
ATTRIBUTES = [attribute.key for attribute in sa.inspect(Item).column_attrs]
