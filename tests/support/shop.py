"""Models that the tests of waits and streams share."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import ForeignKey, MetaData, func
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    metadata = MetaData()


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    total: Mapped[Decimal] = mapped_column(default=Decimal(0))
    weight: Mapped[float] = mapped_column(default=0.0)
    details: Mapped[dict[str, object] | None] = mapped_column(JSONB)
    note: Mapped[str | None] = mapped_column("remark", deferred=True)
    customer_id: Mapped[int | None] = mapped_column(ForeignKey("customers.id"))
    placed_at: Mapped[datetime] = mapped_column(server_default=func.now())

    customer: Mapped[Customer | None] = relationship()


class Line(Base):
    __tablename__ = "lines"

    order_id: Mapped[int] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column("no", primary_key=True)
    quantity: Mapped[int] = mapped_column(default=1)
