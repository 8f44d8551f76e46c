"""What a type checker sees of sessions, transactions and locks."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.orm import (
    Database,
    LockMode,
    QueryMixin,
    advisory_lock,
    create_db_context,
    create_db_dependency,
    get_transaction,
    lock_tables,
)
from rowsignal.orm.sessions import SessionDependency


class OurSession(AsyncSession):
    """A session class of the program's own."""


class Base(QueryMixin, DeclarativeBase):
    """Base of models."""


class Order(Base):
    """A model."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


engine = create_async_engine("postgresql+asyncpg://")
plain = async_sessionmaker(engine)
ours = async_sessionmaker(engine, class_=OurSession)

get_db = create_db_dependency(ours)
assert_type(get_db, SessionDependency[OurSession])
assert_type(get_db(), AsyncGenerator[OurSession, None])
assert_type(create_db_dependency(session_maker=plain), SessionDependency[AsyncSession])
assert_type(create_db_context(ours)(), AbstractAsyncContextManager[OurSession])

database = Database("postgresql://", pool_size=5, session_class=OurSession)
app = FastAPI(lifespan=database.lifespan)
database.install(app)


@app.get("/orders")
async def count(session: Annotated[AsyncSession, Depends(database)]) -> int:
    """Use a database's sessions."""
    assert_type(database.session(), AbstractAsyncContextManager[AsyncSession])
    async with database.begin() as begun:
        assert_type(begun, AsyncSession)
    async with database.lock_tables([Order], session=session) as locked:
        assert_type(locked, AsyncSession)
    return 0


@app.get("/orders/{number}")
async def read(number: int, session: Annotated[OurSession, Depends(get_db)]) -> int | None:
    """Use the session's own type."""
    order = await session.get(Order, number)
    return None if order is None else order.id


async def use(session: OurSession) -> None:
    """Keep the session's type through blocks."""
    async with create_db_context(ours)() as opened:
        assert_type(opened, OurSession)
    async with get_transaction(session) as same:
        assert_type(same, OurSession)
    async with lock_tables(session, [Order, Order.__table__], mode=LockMode.SHARE) as locked:
        assert_type(locked, OurSession)
    async with lock_tables(session_maker=ours, tables=[Order], timeout=1.5) as dedicated:
        assert_type(dedicated, OurSession)
    async with lock_tables(None, [Order], session=session) as named:
        assert_type(named, OurSession)
    assert_type(await Order.get_by_pk(session, 42), Order | None)
    assert_type(await Order.get_by_pk(42, session=session), Order | None)
    async with advisory_lock(session, (1, 2), timeout="5s") as acquired:
        assert_type(acquired, bool)
