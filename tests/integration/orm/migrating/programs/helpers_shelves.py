# ruff: noqa: B008 -- plain defaults are what such programs have
"""A program for sqlalchemy-helpers: models, a manager, migrations that ask, a command."""

import asyncio
from pathlib import Path

from alembic import command
from fastapi import Depends, FastAPI
from pydantic import BaseModel
from sqlalchemy import MetaData, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_helpers import DatabaseStatus, SyncResult, exists_in_db, is_sqlite
from sqlalchemy_helpers.aio import (
    AsyncDatabaseManager,
    Base,
    get_by_pk,
    get_one,
    get_or_create,
    update_or_create,
)
from sqlalchemy_helpers.fastapi import make_db_session, manager_from_config, syncdb
from sqlalchemy_helpers.manager import get_base

MIGRATION = """
from alembic import op
import sqlalchemy as sa
from sqlalchemy_helpers import exists_in_db, is_sqlite
from sqlalchemy_helpers.manager import exists_in_db as present

revision, down_revision = "b2", "a1"


def upgrade():
    if is_sqlite(op.get_bind()) or exists_in_db(op.get_bind(), "shelves", "room"):
        return
    assert present(op.get_bind(), "shelves")
    op.add_column("shelves", sa.Column("room", sa.Unicode))


def downgrade():
    op.drop_column("shelves", "room")
"""


class Shelf(Base):
    __tablename__ = "shelves"
    metadata = MetaData()
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    room: Mapped[str | None]


class Own(DeclarativeBase):
    """A base of the program's own, whose models get their queries from the manager."""


class Book(Own):
    __tablename__ = "books"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)


Made = get_base(cls=AsyncAttrs)


class Reader(Made):
    __tablename__ = "readers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Engine(BaseModel):
    url: str
    pool_size: int = 2


class Scripts(BaseModel):
    migrations_path: Path


class Settings(BaseModel):
    sqlalchemy: Engine
    alembic: Scripts


async def shelve(url: str, location: str) -> list[object]:
    """Use the manager, the models' queries and the functions."""
    manager = AsyncDatabaseManager(url, location, engine_args={"pool_size": 2}, base_model=Own)
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE
    assert await manager.sync() is SyncResult.ALREADY_UP_TO_DATE
    async with manager.engine.begin() as connection:
        await connection.run_sync(Own.metadata.create_all)
        await connection.run_sync(Made.metadata.create_all)

    @manager.configured_connection
    def current(connection):
        command.current(manager.alembic_cfg)
        return connection.closed

    async with manager.engine.connect() as connection:
        assert await connection.run_sync(current) is False
    async with manager.Session() as session:
        shelf, created = await get_or_create(session, Shelf, name="poetry")
        _, updated = await update_or_create(
            session, Shelf, name="poetry", defaults={"room": "attic"}
        )
        book, _ = await Book.get_or_create(session, title="Faust")
        reader, _ = await Reader.get_or_create(session, name="ann")
        await session.commit()
        assert await Book.get_by_pk(book.id, session=session) is book
        assert await get_by_pk(shelf.id, session=session, model=Shelf) is shelf
        assert (await get_one(session, Shelf, name="poetry")).room == "attic"
        revision = await manager.get_current_revision(session)
        assert revision == manager.get_latest_revision()
        assert (await Reader.get_one(session, name="ann")) is reader
    await manager.dispose()
    return [created, updated, revision]


def make_app(settings: Settings) -> FastAPI:
    app = FastAPI()

    async def gen_db_manager() -> AsyncDatabaseManager:
        return manager_from_config(settings)

    async def gen_db_session(manager: AsyncDatabaseManager = Depends(gen_db_manager)):
        async for session in make_db_session(manager):
            yield session

    @app.post("/shelves/{name}")
    async def add(name: str, session: AsyncSession = Depends(gen_db_session)) -> bool:
        _, created = await Shelf.get_or_create(session, name=name)
        return created

    @app.get("/shelves")
    async def names(session: AsyncSession = Depends(gen_db_session)) -> list[str]:
        return list(await session.scalars(select(Shelf.name).order_by(Shelf.id)))

    return app


async def run_syncdb(settings: Settings) -> None:
    await syncdb(settings)


async def close(settings: Settings) -> None:
    await manager_from_config(settings).dispose()
    await asyncio.sleep(0)
    assert not is_sqlite(manager_from_config(settings).engine.sync_engine)
    assert callable(exists_in_db)
