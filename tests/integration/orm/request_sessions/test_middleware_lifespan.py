"""When an engine is disposed, and which."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.exceptions import PoolTimeoutError, SessionNotInitialisedError
from rowsignal.orm.request_sessions.middleware import (
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
)
from rowsignal.orm.request_sessions.proxy import SessionProxy
from support.web_server import served

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


@pytest.mark.parametrize("by_middleware", [True, False])
async def test_middleware_without_a_url_does_not_revive_a_disposed_engine(
    pair: Pair, database_url: str, by_middleware: bool
) -> None:
    middleware, db = pair
    db.init(database_url)
    first = middleware(make_app(pair))
    await (first.dispose() if by_middleware else db.dispose())
    with pytest.raises(SessionNotInitialisedError, match="disposed"):
        middleware(make_app(pair))
    db.init(database_url)
    middleware(make_app(pair))
    await db.dispose()


async def test_middleware_without_a_url_does_not_revive_a_disposed_engine_of_ones_own(
    pair: Pair, engine: AsyncEngine
) -> None:
    pair[1].init(custom_engine=engine)
    await engine.dispose()
    with pytest.raises(SessionNotInitialisedError, match="disposed"):
        pair[0](make_app(pair))


async def test_next_application_without_a_url_starts_after_a_shutdown(
    pair: Pair, database_url: str
) -> None:
    pair[1].init(database_url)
    for _ in range(2):
        async with served(make_app(pair)) as client:
            assert (await client.get("/")).json() == 1


async def test_pool_that_cannot_be_closed_does_not_keep_the_server_waiting(
    pair: Pair, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    app, sent = make_app(pair, db_url=database_url), asyncio.Queue[str]()
    told = asyncio.Queue[dict[str, str]]()

    async def send(message: Any) -> None:
        sent.put_nowait(message["type"])

    served = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, told.get, send))
    told.put_nowait({"type": "lifespan.startup"})
    assert await sent.get() == "lifespan.startup.complete"
    engine = pair[1].require_binding().engine

    def refuse(_: object) -> None:
        raise OSError("the network is gone")

    event.listen(engine.sync_engine, "engine_disposed", refuse)
    told.put_nowait({"type": "lifespan.shutdown"})
    assert await sent.get() == "lifespan.shutdown.complete"
    await served
    assert "could not be closed" in caplog.text


async def test_warning_tells_of_a_full_pool_once(
    pair: Pair, engine: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(pair, custom_engine=engine, pool_warn_threshold=0.01, pool_warn_interval=3600)
    async with served(app) as client:
        for _ in range(2):
            assert (await client.get("/")).json() == 1
    warnings = [one for one in caplog.records if "of the pool's" in one.getMessage()]
    assert len(warnings) == 1


@pytest.mark.parametrize("has_handler", [True, False])
async def test_request_beyond_the_bound_is_answered_after_its_wait(
    pair: Pair, engine: AsyncEngine, has_handler: bool
) -> None:
    limits = {"max_concurrent_requests": 1, "request_queue_timeout": 0.05}
    app = make_app(pair, custom_engine=engine, exclude_paths=["/health"], **limits)
    entered, go = asyncio.Event(), asyncio.Event()

    @app.get("/slow")
    async def slow() -> None:
        entered.set()
        await go.wait()

    @app.get("/health")
    async def health() -> None: ...

    if has_handler:

        @app.exception_handler(PoolTimeoutError)
        async def busy(request: Any, error: PoolTimeoutError) -> JSONResponse:
            return JSONResponse({}, 429, {"Retry-After": str(error.retry_after)})

    async with served(app) as client:
        first = asyncio.ensure_future(client.get("/slow"))
        await entered.wait()
        refused = await client.get("/")
        assert refused.status_code == (429 if has_handler else 503)
        assert refused.headers["retry-after"] == "1"
        assert (await client.get("/health")).status_code == 200
        go.set()
        assert (await first).status_code == 200
        assert (await client.get("/")).json() == 1


@pytest.mark.parametrize(
    "limits",
    [
        {"max_concurrent_requests": 0},
        {"max_concurrent_requests": True},
        {"max_concurrent_requests": 1.5},
        {"request_queue_timeout": 0},
        {"request_queue_timeout": float("nan")},
        {"pool_warn_threshold": 1.1},
        {"pool_warn_interval": -1},
    ],
)
def test_bounds_that_mean_nothing_are_refused(
    pair: Pair, engine: AsyncEngine, limits: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(limits))):
        pair[0](make_app(pair), custom_engine=engine, **limits)
