"""Who disposes of which engine, and when."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.orm.request_sessions.middleware import (
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
)
from rowsignal.orm.request_sessions.proxy import SessionProxy
from web_server import served

PLAIN = {"class_": AsyncSession}
Pair = tuple[type[SQLAlchemyMiddleware], SessionProxy]


@pytest.fixture
def pair() -> Pair:
    return create_middleware_and_session_proxy()


def make_app(
    pair: Pair, lifespan: Callable[[FastAPI], Any] | None = None, **options: Any
) -> FastAPI:
    middleware, db = pair
    app = FastAPI(lifespan=lifespan)
    app.add_middleware(middleware, session_args=PLAIN, **options)

    @app.get("/")
    async def read() -> int | None:
        return await db.session.scalar(text("select 1"))

    return app


async def test_engine_of_a_url_is_disposed_at_shutdown(pair: Pair, database_url: str) -> None:
    used = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        for _ in range(2):
            async with pair[1]():
                used.append(await pair[1].session.scalar(text("select 1")))
            if len(used) == 1:
                yield

    app = make_app(pair, lifespan, db_url=database_url)
    async with served(app) as client:
        assert (await client.get("/")).json() == 1
        binding = pair[1].require_binding()
        assert binding.pool_status()["checked_in"] == 1
    assert used == [1, 1]
    assert binding.is_disposed
    assert binding.pool_status()["checked_in"] == 0


async def test_engine_of_a_url_is_disposed_after_a_failed_startup(
    pair: Pair, database_url: str
) -> None:
    db, sent = pair[1], []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with db():
            await db.session.scalar(text("select 1"))
        assert db.pool_status()["checked_in"] == 1
        raise LookupError
        yield

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    async def send(message: Any) -> None:
        assert db.binding is not None
        sent.append((message["type"], db.binding.is_disposed))

    app = make_app(pair, lifespan, db_url=database_url)
    with pytest.raises(LookupError):
        await app({"type": "lifespan", "state": {}}, receive, send)
    assert sent == [("lifespan.startup.failed", True)]
    assert db.binding is not None
    assert db.binding.pool_status()["checked_in"] == 0


async def test_borrowed_engine_outlives_every_shutdown(pair: Pair, engine: AsyncEngine) -> None:
    async with served(make_app(pair, custom_engine=engine)) as client:
        assert (await client.get("/")).json() == 1
    assert pair[1].pool_status()["checked_in"] == 1
    async with pair[1]():
        assert await pair[1].session.scalar(text("select 1")) == 1


async def test_application_starts_again_after_its_shutdown(pair: Pair, database_url: str) -> None:
    app = make_app(pair, db_url=database_url)
    for _ in range(2):
        async with served(app) as client:
            assert (await client.get("/")).json() == 1


async def test_last_of_two_applications_disposes(pair: Pair, database_url: str) -> None:
    first, second = (make_app(pair, db_url=database_url) for _ in range(2))
    async with served(first) as client:
        async with served(second) as other:
            assert (await other.get("/")).json() == 1
        assert not pair[1].require_binding().is_disposed
        assert (await client.get("/")).json() == 1
    assert pair[1].binding is not None
    assert pair[1].binding.is_disposed
