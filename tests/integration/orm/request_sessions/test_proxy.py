"""`db` outside of requests: blocks, engines, and what is said where no session is open."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession as SQLModelSession

from rowsignal.exceptions import (
    MissingSessionError,
    PoolTimeoutError,
    ProxyBoundError,
    SessionNotInitialisedError,
)
from rowsignal.orm.request_sessions.middleware import (
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
)
from rowsignal.orm.request_sessions.proxy import SessionProxy
from support.session_apps import create_tables, entries, is_free
from support.web_server import served

PLAIN = {"class_": AsyncSession}


@pytest.fixture
async def db(database_url: str, engine: AsyncEngine) -> AsyncIterator[SessionProxy]:
    await create_tables(engine)
    db = SessionProxy()
    db.init(
        database_url,
        engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
        session_args=PLAIN,
    )
    yield db
    await db.dispose()


async def write(db: SessionProxy, parent: int | None = None) -> None:
    await db.session.execute(text("insert into entry values (1, :parent)"), {"parent": parent})


async def test_block_commits_when_asked_and_rolls_back_otherwise(
    db: SessionProxy, engine: AsyncEngine
) -> None:
    async with db():
        await write(db)
    assert await entries(engine) == []
    with pytest.raises(LookupError):  # noqa: PT012 # the block raises
        async with db(commit_on_exit=True):
            await write(db)
            raise LookupError
    assert await entries(engine) == []
    async with db(commit_on_exit=True) as same:
        assert same is db
        await write(db)
    assert await entries(engine) == [1]


async def test_failing_commit_leaves_the_block(db: SessionProxy, engine: AsyncEngine) -> None:
    with pytest.raises(IntegrityError):
        async with db(commit_on_exit=True):
            await write(db, parent=1)
    assert await entries(engine) == []
    assert db.binding is not None
    assert is_free(db.binding.engine)


async def test_nested_blocks_have_sessions_of_their_own(db: SessionProxy) -> None:
    async with db():
        outer = db.session
        async with db(session_args={"expire_on_commit": True}):
            assert db.session is not outer
            assert db.session.sync_session.expire_on_commit
        assert db.session is outer
        assert not outer.sync_session.expire_on_commit


async def test_nested_block_on_a_pool_its_outer_block_fills_fails_at_once(
    database_url: str,
) -> None:
    db = SessionProxy()
    # Without the check this waits for ever: the pool has no timeout
    engine_args = {"pool_size": 1, "max_overflow": 0, "pool_timeout": None}
    db.init(database_url, engine_args=engine_args, session_args=PLAIN)
    async with db():
        await db.session.execute(text("select 1"))
        async with db():
            with pytest.raises(PoolTimeoutError, match="blocks around"):
                await db.session.execute(text("select 1"))
        await db.session.rollback()
        async with db():
            assert await db.session.scalar(text("select 1")) == 1
    await db.dispose()


async def test_full_pool_is_our_error_out_of_the_block(db: SessionProxy) -> None:
    assert db.binding is not None
    async with db.binding.engine.connect():
        with pytest.raises(PoolTimeoutError, match="pool_size"):
            async with db():
                await db.session.execute(text("select 1"))
        with pytest.raises(PoolTimeoutError, match=r"0\.01 s"):
            async with db(pool_timeout=0.01):
                pytest.fail("it has no connection")
        with pytest.raises(PoolTimeoutError, match=r"0\.01 s"):
            async with db(), db.connection(timeout=0.01):
                pytest.fail("it has no connection")
    assert db.pool_status()["checked_out"] == 0


async def test_task_that_outlives_its_block_is_told_so(db: SessionProxy) -> None:
    over = asyncio.Event()

    async def late() -> None:
        await over.wait()
        await write(db)

    async def later(session: AsyncSession) -> None:
        await over.wait()
        session.add_all([])
        await session.scalar(text("select 1"))

    async with db():
        await write(db)
        tasks = [asyncio.create_task(late()), asyncio.create_task(later(db.session))]
    over.set()
    for task in tasks:
        with pytest.raises(MissingSessionError, match="async with db"):
            await task
    assert db.pool_status()["checked_out"] == 0


async def test_no_session_is_told_from_no_engine(db: SessionProxy) -> None:
    with pytest.raises(MissingSessionError, match="async with db"):
        _ = db.session
    with pytest.raises(SessionNotInitialisedError, match=r"db\.init"):
        _ = SessionProxy().session
    with pytest.raises(SessionNotInitialisedError):
        async with SessionProxy()():
            pytest.fail("it has no engine")
    with pytest.raises(SessionNotInitialisedError):
        SessionProxy().pool_status()


async def test_pool_status_tells_the_load(db: SessionProxy, database_url: str) -> None:
    async with db():
        await db.session.execute(text("select 1"))
        assert db.pool_status() == {
            "pool_class": "AsyncAdaptedQueuePool",
            "size": 1,
            "max_overflow": 0,
            "capacity": 1,
            "checked_in": 0,
            "checked_out": 1,
            "available": 0,
            "saturation": 1.0,
        }
    other = SessionProxy()
    from sqlalchemy.pool import NullPool

    other.init(database_url, engine_args={"poolclass": NullPool})
    assert other.pool_status()["capacity"] is None


async def test_sqlmodel_sessions_are_the_default_where_it_is_installed(database_url: str) -> None:
    db = SessionProxy()
    db.init(database_url)
    async with db():
        assert type(db.session) is SQLModelSession
        assert not db.session.sync_session.expire_on_commit
    await db.dispose()


async def test_generator_closed_elsewhere_ends_its_block(db: SessionProxy) -> None:
    async def rows() -> AsyncIterator[int]:
        async with db():
            yield await db.session.scalar(text("select 1"))

    generator = rows()
    assert await asyncio.create_task(anext(generator)) == 1  # type: ignore[arg-type]
    await generator.aclose()  # type: ignore[attr-defined]
    assert db.pool_status()["checked_out"] == 0


async def test_engine_of_an_application_may_be_given_before_it_is_served(
    database_url: str, engine: AsyncEngine
) -> None:
    await create_tables(engine)
    middleware, db = create_middleware_and_session_proxy()
    app = FastAPI()
    app.add_middleware(middleware, db_url=database_url, session_args=PLAIN)
    with pytest.raises(SessionNotInitialisedError):
        db.require_binding()
    db.init(database_url, session_args=PLAIN)
    async with db(commit_on_exit=True):
        await write(db)

    @app.get("/")
    async def read() -> int | None:
        return await db.session.scalar(text("select id from entry"))

    binding = db.binding
    async with served(app) as client:
        assert (await client.get("/")).json() == 1
        assert db.binding is binding


async def test_application_made_twice_shares_one_engine(database_url: str) -> None:
    middleware, db = create_middleware_and_session_proxy()

    def create_app() -> FastAPI:
        app = FastAPI()
        app.add_middleware(middleware, db_url=database_url, session_args=PLAIN)
        app.get("/")(read)
        return app

    async def read() -> int | None:
        return await db.session.scalar(text("select 1"))

    for _ in range(2):
        async with served(create_app(), lifespan="off") as client:
            assert (await client.get("/")).json() == 1
            assert db.pool_status()["checked_in"] == 1
    await db.dispose()


def test_application_of_a_closed_event_loop_leaves_no_dead_connection(database_url: str) -> None:
    db = SessionProxy()

    async def once() -> None:
        db.init(database_url, session_args=PLAIN)
        async with db():
            assert await db.session.scalar(text("select 1")) == 1
        assert db.binding is not None
        # What a loop that ends without a lifespan leaves behind, closed to keep the test quiet
        connection = await db.binding.engine.raw_connection()
        await connection.driver_connection.close()
        connection.close()

    asyncio.run(once())
    asyncio.run(once())


async def test_another_engine_is_refused_before_it_is_made(
    database_url: str, engine: AsyncEngine
) -> None:
    middleware, db = create_middleware_and_session_proxy()
    app = middleware(nothing, db_url=database_url)
    binding = db.binding
    for source in ({"db_url": "nonsense://"}, {"custom_engine": engine}):
        with pytest.raises(ProxyBoundError, match="create_middleware_and_session_proxy"):
            middleware(nothing, **source)
    assert db.binding is binding
    await app.dispose()
    await app.dispose()
    middleware(nothing, custom_engine=engine)
    assert db.binding is not None
    assert db.binding.engine is engine


async def test_disposed_engine_of_ones_own_makes_room_for_the_next(database_url: str) -> None:
    middleware, db = create_middleware_and_session_proxy()
    for _ in range(2):
        engine = create_async_engine(database_url)
        middleware(nothing, custom_engine=engine, session_args=PLAIN)
        async with db():
            assert db.session.bind is engine
        await engine.dispose()


@pytest.mark.parametrize("sources", [{}, {"db_url": "x://", "custom_engine": object()}])
async def test_exactly_one_engine_is_needed(sources: dict[str, Any]) -> None:
    middleware, _ = create_middleware_and_session_proxy()
    with pytest.raises(ValueError, match="exactly one"):
        middleware(nothing, **sources)


async def nothing(scope: Any, receive: Any, send: Any) -> None:
    pass


async def test_pairs_are_independent(db: SessionProxy) -> None:
    other_class, other = create_middleware_and_session_proxy()
    assert issubclass(other_class, SQLAlchemyMiddleware)
    async with db():
        with pytest.raises(SessionNotInitialisedError):
            _ = other.session
