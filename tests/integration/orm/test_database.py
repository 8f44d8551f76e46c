# ruff: noqa: PT012 -- the block is what raises
"""Database: one object for engine, sessions, dependency, locks and the end of the application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException
from fastapi.responses import JSONResponse
from pydantic import PostgresDsn, SecretStr
from sqlalchemy import event, func, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal import Database, LockMode, LockTimeoutError, transaction
from support.entries import Base, Entry
from support.web_server import served


class Own(AsyncSession):
    """A session class of the application's."""


@pytest.fixture
async def db(engine: AsyncEngine, database_url: str) -> AsyncIterator[Database]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    db = Database(database_url, pool_size=2, max_overflow=0)
    yield db
    assert db.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    await db.dispose()


async def entries(engine: AsyncEngine) -> list[int]:
    async with engine.connect() as connection:
        return list(await connection.scalars(select(Entry.id).order_by(Entry.id)))


def make_app(db: Database, **options: Any) -> FastAPI:
    app = FastAPI(**options)

    @app.post("/{number}")
    async def create(
        number: int,
        session: Annotated[AsyncSession, Depends(db)],
        again: Annotated[AsyncSession, Depends(db)],
    ) -> None:
        assert session is again
        async with transaction(session):
            session.add(Entry(id=number))
        if number < 0:
            raise HTTPException(422)

    @app.exception_handler(IntegrityError)
    async def conflict(request: Any, error: Exception) -> JSONResponse:
        return JSONResponse({}, 409)

    return app


async def test_it_is_a_dependency_with_one_transaction_per_request(
    db: Database, engine: AsyncEngine
) -> None:
    async with served(make_app(db)) as client:
        answers = [(await client.post(f"/{number}")).status_code for number in (1, 1, -1, 2)]
    assert answers == [200, 409, 422, 200]
    assert await entries(engine) == [1, 2]


async def test_blocks_commit_or_leave_nothing(db: Database, engine: AsyncEngine) -> None:
    async with db.session() as session:
        session.add(Entry(id=1))
    async with db.begin() as session:
        assert session.in_transaction()
        session.add(Entry(id=2))
    for begin in (db.session, db.begin):
        with pytest.raises(LookupError):
            async with begin() as session:
                session.add(Entry(id=3))
                await session.flush()
                raise LookupError
    assert await entries(engine) == [1, 2]


async def test_locks_are_of_a_session_of_their_own_or_of_the_callers(
    db: Database, engine: AsyncEngine
) -> None:
    async with db.lock_tables([Entry], mode=LockMode.EXCLUSIVE) as own:
        own.add(Entry(id=1))
        with pytest.raises(LockTimeoutError):
            async with (
                db.session() as session,
                db.lock_tables([Entry], session=session, mode="EXCLUSIVE", timeout="10ms"),
            ):
                pytest.fail("two at once")
    async with db.session() as session, db.lock_tables([Entry], session=session) as same:
        assert same is session
    assert await entries(engine) == [1]


@pytest.mark.parametrize("is_installed", [True, False])
async def test_its_engine_is_disposed_with_the_application(
    db: Database, is_installed: bool
) -> None:
    disposed: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, int]]:
        yield {"answer": 42}
        disposed.append("inner")

    app = make_app(db, lifespan=lifespan if is_installed else db.lifespan)
    if is_installed:
        db.install(app)

    event.listen(db.engine.sync_engine, "engine_disposed", lambda _: disposed.append("engine"))
    async with served(app) as client:
        assert (await client.post("/1")).status_code == 200
    assert disposed == (["inner", "engine"] if is_installed else ["engine"])


async def test_engine_of_ones_own_is_not_disposed(db: Database, engine: AsyncEngine) -> None:
    borrowed, disposed = Database(engine=engine), []
    event.listen(engine.sync_engine, "engine_disposed", disposed.append)
    async with served(make_app(borrowed, lifespan=borrowed.lifespan)) as client:
        assert (await client.post("/1")).status_code == 200
    assert disposed == []


async def test_sessions_are_as_asked_for(db: Database, engine: AsyncEngine) -> None:
    own = Database(engine=engine, session_class=Own, expire_on_commit=True, autoflush=False)
    async with own.session() as session:
        assert type(session) is Own
        entry = Entry(id=1)
        session.add(entry)
        assert await session.scalar(select(func.count()).select_from(Entry)) == 0
        await session.commit()
        assert "id" not in vars(entry)


@pytest.mark.parametrize("is_url", [True, False])
async def test_execution_options_hold_for_every_statement(
    engine: AsyncEngine, database_url: str, is_url: bool
) -> None:
    translated = {"schema_translate_map": {None: "tenant"}}
    source: dict[str, Any] = {"url": database_url} if is_url else {"engine": engine}
    async with engine.begin() as connection:
        await connection.execute(text("create schema tenant"))
        await connection.execute(text("create table tenant.entry (id int primary key)"))
    db = Database(**source, session_execution_options=translated)
    async with db.session() as session:
        session.add(Entry(id=1))
        await session.flush()
        assert await session.scalar(text("select count(*) from tenant.entry")) == 1
        async with db.lock_tables([Entry], session=session):
            assert await session.get(Entry, 1, populate_existing=True) is not None
    async with db.lock_tables([Entry]) as own:
        assert list(await own.scalars(select(Entry.id))) == [1]
    await db.dispose()


@pytest.mark.parametrize("make", [str, make_url, SecretStr])
async def test_url_may_be_any_that_names_the_database(database_url: str, make: Any) -> None:
    url = database_url.replace("postgresql+asyncpg", "postgresql")
    name = {"application_name": "told"}
    db = Database(make(url), connect_args={"server_settings": name}, pool_size=1)
    async with db.session() as session:
        assert await session.scalar(text("show application_name")) == "told"
        assert session.bind is db.engine
    await db.dispose()


@pytest.mark.parametrize("make", [str, make_url, PostgresDsn, SecretStr])
def test_url_keeps_its_password(make: Any) -> None:
    url = Database(make("postgresql://ann:secret@db.example/shop")).engine.url
    assert (url.drivername, url.password) == ("postgresql+asyncpg", "secret")


def test_exactly_one_source_is_needed(engine: AsyncEngine) -> None:
    for sources in ({}, {"url": "postgresql://", "engine": engine}):
        with pytest.raises(TypeError, match="exactly one"):
            Database(**sources)
    for options in ({"pool_size": 1}, {"connect_args": {}}):
        with pytest.raises(TypeError, match=next(iter(options))):
            Database(engine=engine, **options)
