"""Which responses commit, which requests have a session, and the effect of other middleware."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from websockets.asyncio.client import connect

from rowsignal.exceptions import MissingSessionError
from support.session_apps import Ledger, answer_with, create_tables, entries, is_free
from support.web_server import served


@pytest.fixture
async def pooled(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=1)
    await create_tables(engine)
    yield engine
    await engine.dispose()


@pytest.fixture
def ledger(pooled: AsyncEngine, engine: AsyncEngine) -> Ledger:
    return Ledger(pooled, engine)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"commit_on_exit": "always"}, ["returned", "http"]),
        ({"commit_statuses": {422}}, ["returned"]),
        ({"commit_on_exit": False}, []),
    ],
)
async def test_options_decide_which_statuses_commit(
    pooled: AsyncEngine, engine: AsyncEngine, options: dict[str, Any], kept: list[str]
) -> None:
    ledger = Ledger(pooled, engine, **options)
    async with served(ledger.app) as client:
        for route in ("returned", "http", "unhandled"):
            await client.get(f"/{route}/works")
            assert await entries(engine) == ([1] if route in kept else [])
            async with engine.begin() as connection:
                await connection.execute(text("delete from entry"))


@pytest.mark.parametrize("commit_on_exit", [True, False])
@pytest.mark.parametrize(("ending", "status"), [("works", 200), ("deferred", 409)])
async def test_transaction_of_a_yield_dependency_commits_before_the_response(
    pooled: AsyncEngine, engine: AsyncEngine, commit_on_exit: bool, ending: str, status: int
) -> None:
    ledger = Ledger(pooled, engine, commit_on_exit=commit_on_exit)

    async def transaction() -> AsyncIterator[None]:
        async with ledger.db.session.begin():
            yield

    @ledger.app.get("/begun", dependencies=[Depends(transaction)])
    async def begun() -> dict[str, bool]:
        return await ledger.plain(ending)

    @ledger.app.get("/begun-and-failed", dependencies=[Depends(transaction)])
    async def failed() -> JSONResponse:
        return await ledger.returned(ending)

    async with served(ledger.app) as client:
        assert (await client.get("/begun-and-failed")).status_code == 422
        assert await entries(engine) == []
        assert (await client.get("/begun")).status_code == status
    assert await entries(engine) == ([1] if status == 200 else [])
    assert is_free(pooled)


async def test_swallowed_failure_of_a_statement_is_no_success(ledger: Ledger) -> None:
    @ledger.app.get("/swallowed")
    async def swallowed() -> dict[str, bool]:
        await ledger.write("works")
        try:
            await ledger.db.session.execute(text("insert into entry values (1)"))
        except IntegrityError:
            return {"ok": True}
        return {"ok": False}

    async with served(ledger.app) as client:
        assert (await client.get("/swallowed")).status_code == 500
    assert await entries(ledger.other) == []


async def test_http_exception_of_a_commit_hook_is_answered(ledger: Ledger) -> None:
    def refuse(_: object) -> None:
        raise HTTPException(451, "not today")

    @ledger.app.get("/hooked")
    async def hooked() -> None:
        await ledger.write("works")
        event.listen(ledger.db.session.sync_session, "before_commit", refuse)

    async with served(ledger.app) as client:
        response = await client.get("/hooked")
    assert (response.status_code, response.json()) == (451, {"detail": "not today"})


async def test_commit_without_a_handler_of_its_own_reaches_that_for_exception(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine)
    for error in (IntegrityError, DBAPIError):
        del ledger.app.exception_handlers[error]
    ledger.app.exception_handler(Exception)(answer_with(500))
    async with served(ledger.app) as client:
        response = await client.get("/plain/deferred")
    assert (response.status_code, response.json()) == (500, {"error": "IntegrityError"})


async def test_handler_may_not_wait_for_a_body_that_was_read(ledger: Ledger) -> None:
    @ledger.app.exception_handler(IntegrityError)
    async def handle(request: Request, error: IntegrityError) -> JSONResponse:
        with pytest.raises(RuntimeError, match="body"):
            await request.body()
        async with ledger.db():
            count = await ledger.db.session.scalar(text("select count(*) from entry"))
        return JSONResponse({"rows": count}, 409)

    @ledger.app.post("/posted")
    async def posted(request: Request) -> bytes:
        await ledger.write("deferred")
        return await request.body()

    async with served(ledger.app) as client:
        response = await client.post("/posted", content=b"body")
    assert (response.status_code, response.json()) == (409, {"rows": 0})


@pytest.mark.parametrize("is_inner", [True, False])
@pytest.mark.parametrize(("ending", "status"), [("works", 200), ("deferred", 409)])
async def test_base_http_middleware_on_either_side_changes_nothing(
    pooled: AsyncEngine, engine: AsyncEngine, is_inner: bool, ending: str, status: int
) -> None:
    ledger = Ledger(pooled, engine)

    async def passing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    ledger.app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    ledger.app.add_middleware(GZipMiddleware)
    if is_inner:
        added = ledger.app.user_middleware
        added.append(added.pop(0))
        added.append(added.pop(0))
    async with served(ledger.app) as client:
        response = await client.get(f"/plain/{ending}")
    assert response.status_code == status
    assert await entries(engine) == ([1] if status == 200 else [])


async def test_mounted_application_shares_the_outer_session(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger, sessions = Ledger(pooled, engine), []
    inner = FastAPI()
    inner.add_middleware(ledger.app.user_middleware[1].cls, custom_engine=pooled)

    @inner.get("/inner")
    async def write() -> None:
        sessions.append(ledger.db.session)
        await ledger.write("works")

    @ledger.app.middleware("http")
    async def note(request: Any, call_next: Any) -> Any:
        sessions.append(ledger.db.session)
        return await call_next(request)

    ledger.app.user_middleware.append(ledger.app.user_middleware.pop(0))
    ledger.app.mount("/sub", inner)
    async with served(ledger.app) as client:
        assert (await client.get("/sub/inner")).status_code == 200
    assert sessions[0] is sessions[1]
    assert await entries(engine) == [1]


async def test_excluded_paths_cover_what_is_below_them(
    pooled: AsyncEngine, engine: AsyncEngine
) -> None:
    ledger = Ledger(pooled, engine, exclude_paths=["/health", "/"])
    for path in ("/health", "/health/live", "/healthy", "/"):
        ledger.app.get(path)(lambda: tell(ledger))
    async with served(ledger.app) as client:
        has_session = {path: (await client.get(path)).json() for path in ("/", "/healthy")}
        has_session |= {
            path: (await client.get(path)).json() for path in ("/health", "/health/live")
        }
    assert has_session == {"/": False, "/healthy": True, "/health": False, "/health/live": False}


def tell(ledger: Ledger) -> bool:
    try:
        return ledger.db.session is not None
    except MissingSessionError:
        return False


async def test_request_that_writes_nothing_takes_no_connection(ledger: Ledger) -> None:
    @ledger.app.get("/idle")
    async def idle() -> bool:
        return isinstance(ledger.db.session, AsyncSession)

    async with ledger.engine.connect(), served(ledger.app) as client:
        assert (await client.get("/idle")).json() is True


async def test_full_pool_reaches_the_handlers_as_our_error(ledger: Ledger) -> None:
    from rowsignal.exceptions import PoolTimeoutError

    @ledger.app.exception_handler(PoolTimeoutError)
    async def full(request: Any, error: PoolTimeoutError) -> JSONResponse:
        return JSONResponse({}, 503, {"Retry-After": str(error.retry_after)})

    async with ledger.engine.connect(), served(ledger.app) as client:
        response = await client.get("/plain/works")
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


async def test_late_use_of_the_request_session_says_what_to_do(ledger: Ledger) -> None:
    errors: list[BaseException] = []

    async def late(session: AsyncSession) -> None:
        with pytest.raises(MissingSessionError) as error:
            _ = ledger.db.session
        errors.append(error.value)
        with pytest.raises(MissingSessionError) as error:
            await session.scalar(text("select 1"))
        errors.append(error.value)

    @ledger.app.get("/late")
    async def handler(tasks: BackgroundTasks) -> StreamingResponse:
        session = ledger.db.session
        await ledger.write("works")

        async def body() -> AsyncIterator[str]:
            await late(session)
            async with ledger.db():
                yield str(await ledger.db.session.scalar(text("select count(*) from entry")))

        tasks.add_task(late, session)
        return StreamingResponse(body(), background=tasks)

    async with served(ledger.app) as client:
        assert (await client.get("/late")).text == "1"
    assert len(errors) == 4
    assert all("async with db()" in str(error) for error in errors)
    assert is_free(ledger.engine)


async def test_web_socket_opens_its_own_blocks(ledger: Ledger) -> None:
    @ledger.app.websocket("/socket")
    async def socket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(tell(ledger))
        async with ledger.db(commit_on_exit=True):
            await ledger.write("works")
        await websocket.send_json(True)

    async with served(ledger.app) as client:
        address = f"ws://{client.base_url.host}:{client.base_url.port}/socket"
        async with connect(address) as connection:
            assert await connection.recv() == "false"
            assert await connection.recv() == "true"
            assert await entries(ledger.other) == [1]


async def test_task_still_writing_at_the_end_leaves_no_success(ledger: Ledger) -> None:
    tasks: list[asyncio.Task[Any]] = []

    @ledger.app.get("/left-running")
    async def left_running() -> None:
        await ledger.write("works")
        locked = asyncio.Event()
        tasks.append(asyncio.create_task(ledger.db.session.execute(text("select pg_sleep(30)"))))
        asyncio.get_running_loop().call_soon(locked.set)
        await locked.wait()

    async with served(ledger.app) as client:
        assert (await client.get("/left-running")).status_code == 500
        assert await entries(ledger.other) == []
        assert isinstance((await asyncio.gather(*tasks, return_exceptions=True))[0], Exception)
        assert is_free(ledger.engine)
        assert (await client.get("/plain/works")).status_code == 200


async def test_task_still_connecting_at_the_end_gets_no_connection(ledger: Ledger) -> None:
    tasks: list[asyncio.Task[Any]] = []

    @ledger.app.get("/left-connecting")
    async def left_connecting() -> None:
        tasks.append(asyncio.create_task(ledger.db.session.execute(text("select 1"))))
        await asyncio.sleep(0)

    await ledger.engine.dispose()
    async with served(ledger.app) as client:
        assert (await client.get("/left-connecting")).status_code == 500
        with pytest.raises(MissingSessionError):
            await tasks[0]
    assert is_free(ledger.engine)
