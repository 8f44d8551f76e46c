"""A larger program for fastapi-async-sqlalchemy: two databases, streams, probes, many sessions."""

import asyncio
import os
from contextlib import suppress

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi_async_sqlalchemy import (
    DBSessionMeta,
    PoolTimeoutError,
    create_middleware_and_session_proxy,
)
from fastapi_async_sqlalchemy.exceptions import MissingSessionError, SessionNotInitialisedError
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ["DATABASE_URL"]
PLAIN = {"class_": AsyncSession}

OrdersMiddleware, orders_db = create_middleware_and_session_proxy()
AuditMiddleware, audit_db = create_middleware_and_session_proxy()
ProbeMiddleware, probe_db = create_middleware_and_session_proxy()


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str] = mapped_column(unique=True)


class Audit(Base):
    __tablename__ = "audit"
    id: Mapped[int] = mapped_column(primary_key=True)
    what: Mapped[str]


@event.listens_for(Order, "before_insert")
def normalize(mapper, connection, target):
    target.article = target.article.lower()


app = FastAPI()
app.add_middleware(
    OrdersMiddleware,
    db_url=URL,
    commit_on_exit=True,
    engine_args={"pool_size": 4, "max_overflow": 0, "pool_timeout": 60},
    session_args=PLAIN,
    pool_warn_threshold=0.9,
    max_concurrent_requests=50,
    request_queue_timeout=5,
    exclude_paths=["/health"],
)
app.add_middleware(AuditMiddleware, db_url=URL, session_args=PLAIN)
app.add_middleware(
    ProbeMiddleware,
    db_url=URL,
    session_args=PLAIN,
    engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
)


def get_db() -> DBSessionMeta:
    return orders_db


@app.on_event("startup")
async def on_startup() -> None:
    async with get_db()(commit_on_exit=True):
        connection = await orders_db.session.connection()
        await connection.run_sync(Base.metadata.create_all)


@app.exception_handler(PoolTimeoutError)
async def pool_exhausted(request, error: PoolTimeoutError):
    headers = {"Retry-After": str(error.retry_after)}
    return JSONResponse({"timeout": error.timeout, "pool": error.pool_status}, 503, headers)


@app.exception_handler(IntegrityError)
async def conflict(request, error: IntegrityError):
    return JSONResponse({"detail": "there is one"}, 409)


@app.post("/orders/{article}")
async def create(article: str) -> int:
    order = Order(article=article)
    orders_db.session.add(order)
    await orders_db.session.flush()
    async with audit_db(commit_on_exit=True):
        audit_db.session.add(Audit(what=article))
    return order.id


@app.get("/orders")
async def export() -> StreamingResponse:
    async def rows():
        async with orders_db():
            result = await orders_db.session.stream(select(Order).order_by(Order.id))
            async for order in result.scalars():
                yield f"{order.article}\n"

    return StreamingResponse(rows(), media_type="text/plain")


@app.get("/concurrent")
async def concurrent() -> list[int]:
    async with orders_db(multi_sessions=True, max_concurrent=3):

        async def execute(number: int) -> int:
            async with orders_db.connection() as session:
                return await session.scalar(text(f"select {number}"))

        tasks = [asyncio.create_task(execute(number)) for number in range(6)]
        return await asyncio.gather(*tasks)


@app.get("/gathered")
async def gathered() -> list[int]:
    async def execute(number: int) -> int:
        return await orders_db.session.scalar(text(f"select {number}"))

    async with orders_db(multi_sessions=True, max_concurrent=2):
        return await orders_db.gather(*(execute(number) for number in range(6)))


@app.get("/lent")
async def lent() -> bool:
    async with orders_db.connection() as session:
        return session is orders_db.session


@app.get("/health")
async def health() -> dict[str, object]:
    with suppress(MissingSessionError):
        _ = orders_db.session
    async with probe_db(pool_timeout=1):
        await probe_db.session.execute(text("select 1"))
    return orders_db.pool_status()


@app.get("/busy")
async def busy() -> None:
    async with probe_db():
        await probe_db.session.execute(text("select 1"))
        async with probe_db(pool_timeout=0.05):
            await probe_db.session.execute(text("select 2"))


def is_initialised() -> bool:
    _, unused = create_middleware_and_session_proxy()
    try:
        _ = unused.session
    except SessionNotInitialisedError:
        return False
    return True
