# ruff: noqa: B008 -- plain defaults are what such programs have
"""A program for fastapi-toolsets up to version 4: factories, and its helpers for tests."""

import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, HTTPException
from fastapi_toolsets.db import (
    LockMode,
    cleanup_tables,
    create_database,
    create_db_context,
    create_db_dependency,
    get_transaction,
    lock_tables,
)
from fastapi_toolsets.pytest import (
    create_async_client,
    create_db_session,
    create_worker_database,
    worker_database_url,
)
from sqlalchemy import func, select
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

URL = os.environ["DATABASE_URL"]


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    name: Mapped[str] = mapped_column(primary_key=True)
    balance: Mapped[int] = mapped_column(default=0)


engine = create_async_engine(URL)
session_maker = async_sessionmaker(engine, expire_on_commit=False)
get_db = create_db_dependency(session_maker=session_maker)
db_context = create_db_context(session_maker=session_maker)


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


@app.post("/accounts/{name}")
async def open_account(name: str, session: AsyncSession = Depends(get_db)) -> None:
    async with get_transaction(session):
        session.add(Account(name=name, balance=100))


@app.post("/transfers/{giver}/{taker}/{amount}")
async def transfer(
    giver: str, taker: str, amount: int, session: AsyncSession = Depends(get_db)
) -> dict[str, int]:
    async with lock_tables(session, [Account], mode=LockMode.SHARE_ROW_EXCLUSIVE, timeout="5s"):
        one, other = await session.get(Account, giver), await session.get(Account, taker)
        if one is None or other is None:
            raise HTTPException(404)
        async with get_transaction(session):
            one.balance -= amount
        async with get_transaction(session):
            other.balance += amount
        if one.balance < 0:
            raise HTTPException(409)
    return {one.name: one.balance, other.name: other.balance}


async def total() -> int:
    async with db_context() as session:
        return await session.scalar(select(func.sum(Account.balance))) or 0


async def check_with_its_own_helpers() -> list[int]:
    """Do what the program's conftest does: a database for the worker, a client with overrides."""
    seen = []
    server = make_url(URL)
    async with create_worker_database(URL, prefix="accounts", server_url=URL) as worker_url:
        assert worker_url == worker_database_url(URL, "test_db", prefix="accounts")
        async with create_db_session(worker_url, Base, cleanup=True) as session:

            async def override():
                yield session

            overrides = {get_db: override}
            async with create_async_client(app, dependency_overrides=overrides) as client:
                seen.append((await client.post("/accounts/ann")).status_code)
            session.expire_all()
            seen.append((await session.get(Account, "ann")).balance)
            await session.commit()
            await cleanup_tables(session, Base)
            seen.append(await session.scalar(select(func.count()).select_from(Account)))
    assert app.dependency_overrides == {}
    name = f"{server.database}_archive"
    await create_database(name, server_url=URL)
    return seen
