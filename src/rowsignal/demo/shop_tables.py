"""The tables of the shop (customers, items, orders), and the values to fill them with."""

from datetime import datetime
from decimal import Decimal

from sqlalchemy import DateTime, ForeignKey, MetaData, Numeric, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

SCHEMA = "shop"
NEXT_STATUS = {"new": "paid", "paid": "packed", "packed": "shipped", "shipped": "delivered"}
CLOSED = ("delivered", "cancelled")

FIRST_NAMES = [
    "Ada",
    "Bela",
    "Chiara",
    "Dario",
    "Edda",
    "Femi",
    "Greta",
    "Hugo",
    "Ines",
    "Kaia",
    "Luca",
]
LAST_NAMES = ["Abel", "Brandt", "Costa", "Dahl", "Egger", "Falk", "Grau", "Hansen", "Ito", "Klein"]
CITIES = ["Bergen", "Bologna", "Ghent", "Graz", "Lyon", "Malmö", "Porto", "Split", "Tartu", "Turku"]
SHELF = {
    "Espresso cup": "9.50",
    "Oak bread board": "34.00",
    "Linen apron": "42.00",
    "Enamel kettle": "58.00",
    "Beeswax candle": "12.80",
    "Copper whisk": "18.40",
    "Clay pitcher": "47.50",
    "Wool blanket": "96.00",
    "Paring knife": "27.90",
    "Brass hook": "7.20",
    "Cork mat": "15.00",
    "Tin lantern": "39.00",
}


class Base(DeclarativeBase):
    """Base of the shop's tables, which are in their own schema."""

    metadata = MetaData(schema=SCHEMA)


class Customer(Base):
    """A customer."""

    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    city: Mapped[str]
    orders_placed: Mapped[int] = mapped_column(default=0)


class Item(Base):
    """An item in stock."""

    __tablename__ = "items"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))
    stock: Mapped[int]


class Order(Base):
    """An order of one item by one customer; its status only advances."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey(Customer.id))
    item_id: Mapped[int] = mapped_column(ForeignKey(Item.id))
    quantity: Mapped[int]
    total: Mapped[Decimal] = mapped_column(Numeric(10, 2))
    status: Mapped[str] = mapped_column(default="new")
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
