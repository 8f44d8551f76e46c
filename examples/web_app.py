"""A FastAPI application where a client waits for its order, and pages follow all orders.

    DATABASE_URL=postgresql+asyncpg://me@localhost/shop python examples/web_app.py 8000

    curl -X POST localhost:8000/orders
    curl 'localhost:8000/orders/1/wait?timeout=20' &
    curl -X POST localhost:8000/orders/1/pay
    curl -N localhost:8000/live/changes/public.orders

The waiting client has its answer about a millisecond after the payment is committed.
"""

import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Annotated

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Query
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal import (
    Listener,
    NotFoundError,
    WaitTimeoutError,
    create_db_dependency,
    install_triggers,
    wait_for_row_change,
)
from rowsignal.sse import create_sse_router


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="new")


engine = create_async_engine(os.environ["DATABASE_URL"])
sessions = async_sessionmaker(engine, expire_on_commit=False)
Session = Annotated[AsyncSession, Depends(create_db_dependency(sessions), scope="function")]


@contextlib.asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base, log=True)
    async with Listener(engine):  # optional: fails at the start, not at the first wait
        yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)
app.include_router(create_sse_router(engine, {Order: ["id", "status"]}), prefix="/live")


@app.post("/orders", status_code=201)
async def place(session: Session) -> dict[str, int]:
    order = Order()
    session.add(order)
    await session.flush()
    return {"id": order.id}


@app.post("/orders/{number}/pay", status_code=204)
async def pay(number: int, session: Session) -> None:
    order = await session.get(Order, number, with_for_update=True)
    if order is None:
        raise HTTPException(404)
    order.status = "paid"


@app.get("/orders/{number}/wait")
async def wait(number: int, timeout: Annotated[float, Query(gt=0, le=60)] = 20) -> dict[str, str]:
    try:
        order = await wait_for_row_change(
            engine, Order, number, columns=[Order.status], timeout=timeout
        )
    except NotFoundError as error:
        raise HTTPException(404, str(error)) from error
    except WaitTimeoutError as error:
        raise HTTPException(504, str(error)) from error
    return {"status": order.status}


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), timeout_graceful_shutdown=2)
