"""A small, busy shop: orders are placed and advance, items are sold and restocked."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Collection, Iterator
from decimal import Decimal
from random import Random
from typing import TypeVar

import asyncpg
from sqlalchemy import exists, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.schema import CreateSchema

from rowsignal.demo.shop_tables import (
    CITIES,
    CLOSED,
    FIRST_NAMES,
    LAST_NAMES,
    NEXT_STATUS,
    SCHEMA,
    SHELF,
    Base,
    Customer,
    Item,
    Order,
)

OPEN_ORDERS, CLOSED_ORDERS, CUSTOMERS = 36, 24, 40
FULL_SHELF, LOW_SHELF = 40, 6
DATABASE_AWAY = (DBAPIError, OSError, asyncpg.PostgresError, asyncpg.InterfaceError)

Row = TypeVar("Row", Customer, Item)
Chore = Callable[[AsyncSession, Random], Awaitable[None]]


async def create_shop(engine: AsyncEngine, *, seed: int = 1) -> None:
    """Create missing tables, and fill empty ones."""
    async with engine.begin() as connection:
        await connection.execute(CreateSchema(SCHEMA, if_not_exists=True))
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        if not await session.scalar(select(func.count(Customer.id))):
            await _furnish(session, Random(seed))  # noqa: S311 -- a story, not a secret
            await session.flush()
            await session.execute(text(f"ANALYZE {', '.join(Base.metadata.tables)}"))


async def run_shop(
    engine: AsyncEngine, *, rate: float = 4.0, stop: asyncio.Event | None = None, seed: int = 2
) -> int:
    """Run transactions until `stop` is set or the task is cancelled; return their number.

    `rate` is the mean number of transactions per second; the actual rate varies in waves and short
    bursts. Each transaction writes one to three rows. After an outage it tries again.
    """
    rng, stop = Random(seed), stop or asyncio.Event()  # noqa: S311 -- as above
    sessions, done = async_sessionmaker(engine), 0
    for pause in _pauses(rng, rate):
        if await _stopped(stop, pause):
            break
        try:
            done += await _serve(sessions, rng)
        except DATABASE_AWAY as error:
            if not _is_away(error):
                raise
            await _stopped(stop, 0.5)
    return done


async def _serve(sessions: async_sessionmaker[AsyncSession], rng: Random) -> int:
    async with sessions.begin() as session:
        chore = _choose(rng, await _count(session, CLOSED), await _count(session, NEXT_STATUS))
        await chore(session, rng)
    return 1


def _choose(rng: Random, closed: int, opened: int) -> Chore:
    """Choose the next transaction, so that the numbers of open and closed orders stay small."""
    chores: dict[Chore, float] = {
        place_order: max(0.0, 2 * OPEN_ORDERS - opened) / OPEN_ORDERS * 5,
        advance_order: opened / OPEN_ORDERS * 18,
        cancel_order: 0.6,
        archive_order: max(0, closed - CLOSED_ORDERS),
        restock: 2,
        reprice: 0.6,
        greet_customer: 0.8,
        move_customer: 0.6,
    }
    return rng.choices(list(chores), list(chores.values()))[0]


async def place_order(session: AsyncSession, rng: Random) -> None:
    """Insert an order, and update the stock and the customer's count."""
    customer, item = await _any(session, rng, Customer), await _any(session, rng, Item)
    quantity = min(rng.choice((1, 1, 1, 2, 2, 3, 6)), item.stock)
    if not quantity:
        return await restock(session, rng)
    item.stock -= quantity
    customer.orders_placed += 1
    session.add(_order(customer, item, quantity))
    return None


async def advance_order(session: AsyncSession, rng: Random) -> None:
    """Advance the status of one open order, preferably an old one."""
    if order := await _early(session, rng, tuple(NEXT_STATUS)):
        order.status = NEXT_STATUS[order.status]


async def cancel_order(session: AsyncSession, rng: Random) -> None:
    """Cancel an order, and return its items to the stock."""
    if order := await _early(session, rng, ("new", "paid")):
        order.status = "cancelled"
        item = await session.get_one(Item, order.item_id)
        item.stock += order.quantity


async def archive_order(session: AsyncSession, rng: Random) -> None:
    """Delete a closed order."""
    if order := await _early(session, rng, CLOSED):
        await session.delete(order)


async def restock(session: AsyncSession, rng: Random) -> None:
    """Restock the items that run low, or else some item."""
    low = await session.scalar(select(Item).where(Item.stock < LOW_SHELF).order_by(Item.stock))
    item = low or await _any(session, rng, Item)
    item.stock = FULL_SHELF if low else item.stock + rng.randint(2, 6)


async def reprice(session: AsyncSession, rng: Random) -> None:
    """Change a price by a few percent of its initial value."""
    item = await _any(session, rng, Item)
    asked = Decimal(SHELF.get(item.name, str(item.price))) * rng.randint(90, 112) / 100
    item.price = asked.quantize(Decimal("0.10"))


async def greet_customer(session: AsyncSession, rng: Random) -> None:
    """Insert a customer; if there are many, delete one without orders."""
    session.add(_customer(rng))
    idle = select(Customer).where(~exists().where(Order.customer_id == Customer.id))
    others = (await session.scalars(idle.order_by(Customer.id).offset(CUSTOMERS // 2))).all()
    if len(others) > CUSTOMERS // 2:
        await session.delete(rng.choice(others))


async def move_customer(session: AsyncSession, rng: Random) -> None:
    """Change the city of a customer."""
    customer = await _any(session, rng, Customer)
    customer.city = rng.choice([city for city in CITIES if city != customer.city])


async def _furnish(session: AsyncSession, rng: Random) -> None:
    items = [
        Item(name=name, price=Decimal(price), stock=rng.randint(12, FULL_SHELF))
        for name, price in SHELF.items()
    ]
    customers = [_customer(rng) for _ in range(18)]
    session.add_all([*items, *customers])
    await session.flush()
    for _ in range(OPEN_ORDERS):
        order = _order(rng.choice(customers), rng.choice(items), rng.randint(1, 3))
        order.status = rng.choice(list(NEXT_STATUS))
        session.add(order)


def _customer(rng: Random) -> Customer:
    name = f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"
    return Customer(name=name, city=rng.choice(CITIES))


def _order(customer: Customer, item: Item, quantity: int) -> Order:
    total = item.price * quantity
    return Order(customer_id=customer.id, item_id=item.id, quantity=quantity, total=total)


async def _count(session: AsyncSession, statuses: Collection[str]) -> int:
    wanted = Order.status.in_(statuses)
    return await session.scalar(select(func.count(Order.id)).where(wanted)) or 0


async def _any(session: AsyncSession, rng: Random, model: type[Row]) -> Row:
    ids = (await session.scalars(select(model.id).order_by(model.id))).all()
    return await session.get_one(model, rng.choice(ids))


async def _early(session: AsyncSession, rng: Random, statuses: tuple[str, ...]) -> Order | None:
    wanted = select(Order).where(Order.status.in_(statuses)).order_by(Order.id)
    orders = (await session.scalars(wanted)).all()
    return orders[int(len(orders) * rng.random() ** 2)] if orders else None


def _pauses(rng: Random, rate: float) -> Iterator[float]:
    """Yield the seconds between transactions: a slow wave, with short bursts."""
    beat = 0
    while True:
        tide = 1 + 0.55 * math.sin(beat / 35)
        rush = rng.randint(3, 8) if rng.random() < 0.04 else 1
        for _ in range(rush):
            yield min(rng.expovariate(rate * tide * (4 if rush > 1 else 0.9)), 10 / rate)
        beat += rush


async def _stopped(stop: asyncio.Event, pause: float) -> bool:
    try:
        await asyncio.wait_for(stop.wait(), pause)
    except TimeoutError:
        return False
    return True


def _is_away(error: Exception) -> bool:
    """Tell whether an error is an outage of the database."""
    if isinstance(error, DBAPIError):
        return error.connection_invalidated or _is_away_code(error.orig)
    return isinstance(error, OSError | asyncpg.InterfaceError) or _is_away_code(error)


def _is_away_code(error: object) -> bool:
    code = str(getattr(error, "sqlstate", ""))
    return code.startswith(("08", "57P", "53"))
