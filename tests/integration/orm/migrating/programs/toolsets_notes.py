# ruff: noqa: B008 -- plain defaults are what such programs have
"""A program for fastapi-toolsets 6: one Database, its dependency, locks, tags, a wait."""

import asyncio
import os
from contextlib import asynccontextmanager

from fastapi import Depends, FastAPI, HTTPException, Response
from fastapi_toolsets.db import (
    Database,
    LockMode,
    advisory_lock,
    lock_tables,
    m2m_add,
    m2m_remove,
    m2m_set,
    transaction,
    wait_for_row_change,
)
from fastapi_toolsets.exceptions import LockTimeoutError, NotFoundError, PoolExhaustedError
from sqlalchemy import Column, ForeignKey, Table, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload


class Base(DeclarativeBase):
    pass


note_tags = Table(
    "note_tags",
    Base.metadata,
    Column("note_id", ForeignKey("notes.id"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)


class Note(Base):
    __tablename__ = "notes"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str] = mapped_column(default="draft")
    tags: Mapped[list[Tag]] = relationship(secondary=note_tags)


db = Database(
    os.environ["DATABASE_URL"],
    pool_size=3,
    max_overflow=0,
    pool_timeout=5,
    connect_args={"server_settings": {"application_name": "notes"}},
)


@asynccontextmanager
async def lifespan(app: FastAPI):
    async with db.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield


app = FastAPI(lifespan=lifespan)
db.install(app)


@app.exception_handler(NotFoundError)
async def not_found(request, error):
    return Response(status_code=404)


@app.exception_handler(LockTimeoutError)
@app.exception_handler(PoolExhaustedError)
async def busy(request, error):
    return Response(status_code=503)


@app.post("/notes/{title}", status_code=201)
async def create(title: str, tags: str = "", session: AsyncSession = Depends(db)) -> int:
    note = Note(title=title)
    async with transaction(session):
        session.add(note)
        await session.flush()
        for name in filter(None, tags.split(",")):
            async with advisory_lock(session, 42):
                tag = await session.scalar(select(Tag).where(Tag.name == name))
                tag = tag or Tag(name=name)
                session.add(tag)
                await session.flush()
            await m2m_add(session, note, Note.tags, tag, ignore_conflicts=True)
    if title == "forbidden":
        raise HTTPException(422)
    return note.id


@app.put("/notes/{number}/tags/{names}")
async def retag(number: int, names: str, session: AsyncSession = Depends(db)) -> list[str]:
    note = await find(session, number)
    wanted = list(await session.scalars(select(Tag).where(Tag.name.in_(names.split(",")))))
    await m2m_set(session, note, Note.tags, *wanted)
    if "draft" in names:
        drafts = [tag for tag in wanted if tag.name == "draft"]
        await m2m_remove(session, note, Note.tags, *drafts)
    await session.refresh(note, ["tags"])
    return sorted(tag.name for tag in note.tags)


@app.post("/notes/{number}/publish")
async def publish(number: int, session: AsyncSession = Depends(db)) -> str:
    async with db.lock_tables([Note], session=session, mode=LockMode.SHARE_ROW_EXCLUSIVE):
        note = await find(session, number)
        note.state = "published"
    return note.state


@app.get("/notes/{number}/published")
async def published(number: int, session: AsyncSession = Depends(db)) -> str:
    note = await wait_for_row_change(session, Note, number, columns=["state"], timeout=30)
    return note.state


async def find(session: AsyncSession, number: int) -> Note:
    note = await session.get(Note, number, options=[selectinload(Note.tags)])
    if note is None:
        raise NotFoundError(f"no note {number}")
    return note


async def archive_all() -> int:
    """Run outside of requests, as a command does."""
    async with db.lock_tables([Note], mode=LockMode.EXCLUSIVE, timeout="2s") as session:
        notes = list(await session.scalars(select(Note)))
        for note in notes:
            note.state = "archived"
    async with db.begin() as session, lock_tables(None, [Tag], session=session):
        session.add(Tag(name="archive"))
    async with db.session() as session:
        found = await session.scalars(select(Note).where(Note.state == "archived"))
        return len(list(found))


async def count_at_once(numbers: list[int]) -> list[str]:
    async def state(number: int) -> str:
        async with db.session() as session:
            return (await find(session, number)).state

    return await asyncio.gather(*(state(number) for number in numbers))
