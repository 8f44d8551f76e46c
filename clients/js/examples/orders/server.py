"""Orders in PostgreSQL, streamed to the page and paid by it.

DATABASE_URL=postgresql+asyncpg://me@localhost/shop uvicorn server:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.staticfiles import StaticFiles
from sqlalchemy import Text, cast, func, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal import Listener, install_triggers
from rowsignal.sse import create_sse_router

PAGE = Path(__file__).parent / "dist"


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")
    total: Mapped[Decimal]


engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base, log=True)
    async with sessions.begin() as session:
        if not await session.scalar(select(func.count()).select_from(Order)):
            session.add_all(Order(id=number, total=Decimal(number) * 10) for number in (1, 2, 3))
    async with Listener(engine):
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
router = create_sse_router(engine, {Order: ["id", "status", "total"]})
app.include_router(router, prefix="/v1")


@app.post("/orders/{order_id}/pay")
async def pay(order_id: int) -> dict[str, str]:
    """Pay one order; the page waits until its stream has passed this transaction."""
    async with sessions.begin() as session:
        order = await session.get(Order, order_id, with_for_update=True)
        if order is None or order.status != "new":
            raise HTTPException(409, f"Order {order_id} is not there to be paid.")
        order.status = "paid"
        transaction = await session.scalar(select(cast(func.pg_current_xact_id(), Text)))
    return {"transaction": str(transaction)}


if PAGE.exists():
    app.mount("/", StaticFiles(directory=PAGE, html=True))
