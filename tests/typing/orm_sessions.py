"""What a type checker sees of sessions, transactions and locks."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from typing import Annotated, assert_type

from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.orm.locks.advisory import advisory_lock
from rowsignal.orm.locks.tables import LockMode, lock_tables
from rowsignal.orm.sessions.dependency import (
    SessionDependency,
    create_db_context,
    create_db_dependency,
)
from rowsignal.orm.sessions.transactions import get_transaction


class OurSession(AsyncSession):
    """A session class of the program's own."""


class Base(DeclarativeBase):
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

app = FastAPI()


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
    async with advisory_lock(session, (1, 2), timeout="5s") as acquired:
        assert_type(acquired, bool)
