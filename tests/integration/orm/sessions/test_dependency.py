# ruff: noqa: B008, PT012 -- plain defaults are what is documented; the block is what raises
import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, WebSocket
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from starlette.requests import HTTPConnection, Request
from websockets.asyncio.client import connect

from rowsignal.exceptions import (
    AbortedTransactionError,
    MissingSessionError,
    PoolExhaustedError,
    SessionInUseError,
)
from rowsignal.orm.sessions.dependency import (
    SessionDependency,
    create_db_dependency,
)
from support.people import Person, names
from support.web_server import served

Maker = async_sessionmaker[AsyncSession]
Endpoint = Callable[..., Awaitable[Any]]


@pytest.fixture
def get_db(maker: Maker) -> SessionDependency[AsyncSession]:
    return create_db_dependency(session_maker=maker)


def app_of(endpoint: Endpoint, **options: Any) -> FastAPI:
    app = FastAPI()
    app.post("/", **options)(endpoint)
    return app


async def test_a_row_is_committed_when_the_response_starts(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: Annotated[AsyncSession, Depends(get_db)]) -> None:
        session.add(Person(name="grace"))

    seen: list[list[str]] = []
    app = app_of(create)

    async def looking(scope: Any, receive: Any, send: Any) -> None:
        async def look(message: Any) -> None:
            if message["type"] == "http.response.start":
                seen.append(await names(engine))
            await send(message)

        await app(scope, receive, look)

    async with served(looking) as client:
        assert (await client.post("/")).status_code == 200
    assert seen == [["ada", "grace"]]


async def test_a_commit_that_fails_is_answered_by_the_applications_handler(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> dict[str, str]:
        session.add(Person(name="ada"))
        await session.flush()
        return {"status": "created"}

    app = app_of(create)

    @app.exception_handler(IntegrityError)
    async def conflict(request: Request, error: IntegrityError) -> JSONResponse:
        return JSONResponse({"error": "taken"}, status_code=409)

    async with served(app) as client:
        response = await client.post("/")
    assert (response.status_code, response.json()) == (409, {"error": "taken"})
    assert await names(engine) == ["ada"]


async def test_a_commit_that_fails_without_a_handler_is_a_500(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="ada"))

    async with served(app_of(create)) as client:
        assert (await client.post("/")).status_code == 500
    assert await names(engine) == ["ada"]


async def test_a_connection_lost_before_the_commit_is_never_a_2xx(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="grace"))
        await session.flush()
        pid = await session.scalar(select(func.pg_backend_pid()))
        async with engine.connect() as other:
            await other.execute(select(func.pg_terminate_backend(pid, 5000)))

    async with served(app_of(create)) as client:
        assert (await client.post("/")).status_code == 500
    assert await names(engine) == ["ada"]


async def test_a_swallowed_error_does_not_pass_for_a_commit(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="grace"))
        await session.flush()
        with suppress(DBAPIError):
            await session.execute(text("select 1 / 0"))

    app = app_of(create)

    @app.exception_handler(AbortedTransactionError)
    async def aborted(request: Request, error: AbortedTransactionError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=503)

    async with served(app) as client:
        response = await client.post("/")
    assert response.status_code == 503
    assert "Nothing was committed" in response.json()["error"]
    assert await names(engine) == ["ada"]


async def test_a_task_that_still_uses_the_session_is_never_a_2xx(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="grace"))
        await session.flush()
        tasks.append(asyncio.create_task(session.execute(select(func.pg_sleep(60)))))
        asleep = text("select exists (select from pg_stat_activity where wait_event = 'PgSleep')")
        async with asyncio.timeout(30), engine.connect() as other:
            while not await other.scalar(asleep):
                await other.rollback()

    app = app_of(create)

    @app.exception_handler(SessionInUseError)
    async def in_use(request: Request, error: SessionInUseError) -> JSONResponse:
        return JSONResponse({}, status_code=503)

    async with served(app) as client:
        assert (await client.post("/")).status_code == 503
    assert await names(engine) == ["ada"]
    (outcome,) = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(outcome, DBAPIError)
    assert engine.pool.checkedout() == 0


async def test_an_error_swallowed_around_a_savepoint_does_no_harm(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="grace"))
        with suppress(DBAPIError):
            async with session.begin_nested():
                await session.execute(text("select 1 / 0"))

    async with served(app_of(create)) as client:
        assert (await client.post("/")).status_code == 200
    assert await names(engine) == ["ada", "grace"]


@pytest.mark.parametrize(
    ("error", "status"),
    [(HTTPException(404), 404), (KeyError("mapped"), 418), (ZeroDivisionError(), 500)],
)
async def test_an_exception_rolls_back(
    error: Exception,
    status: int,
    engine: AsyncEngine,
    get_db: SessionDependency[AsyncSession],
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None:
        session.add(Person(name="grace"))
        await session.flush()
        raise error

    app = app_of(create)

    @app.exception_handler(KeyError)
    async def teapot(request: Request, error: KeyError) -> JSONResponse:
        return JSONResponse({}, status_code=418)

    async with served(app) as client:
        assert (await client.post("/")).status_code == status
    assert await names(engine) == ["ada"]
    assert engine.pool.checkedout() == 0


async def test_what_is_returned_commits_whatever_its_status(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> JSONResponse:
        session.add(Person(name="grace"))
        return JSONResponse({}, status_code=422)

    async with served(app_of(create)) as client:
        assert (await client.post("/")).status_code == 422
    assert await names(engine) == ["ada", "grace"]


async def test_an_endpoint_that_does_not_use_its_session_takes_no_connection(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def idle(session: AsyncSession = Depends(get_db)) -> int:
        return int(engine.pool.checkedout())

    async with served(app_of(idle)) as client:
        assert (await client.post("/")).json() == 0


async def test_sub_dependencies_share_one_session_whatever_their_scope(
    get_db: SessionDependency[AsyncSession],
) -> None:
    async def user(session: AsyncSession = Depends(get_db)) -> AsyncSession:
        return session

    async def tenant(
        session: AsyncSession = Depends(get_db, use_cache=False),
    ) -> AsyncIterator[AsyncSession]:
        yield session

    async def compare(
        session: AsyncSession = Depends(get_db, scope="function"),
        first: AsyncSession = Depends(user),
        second: AsyncSession = Depends(tenant),
    ) -> bool:
        return first is session and second is session

    async with served(app_of(compare, response_model=bool)) as client:
        assert (await client.post("/")).json() is True


async def test_two_requests_have_two_sessions(get_db: SessionDependency[AsyncSession]) -> None:
    kept: list[AsyncSession] = []

    async def keep(session: AsyncSession = Depends(get_db)) -> None:
        kept.append(session)

    async with served(app_of(keep)) as client:
        await client.post("/")
        await client.post("/")
    assert kept[0] is not kept[1]


async def test_a_stream_starts_when_its_session_is_finished(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async def stream(session: AsyncSession = Depends(get_db)) -> StreamingResponse:
        session.add(Person(name="grace"))
        await session.flush()

        async def body() -> AsyncIterator[str]:
            yield f"{engine.pool.checkedout()} {await names(engine)}"
            try:
                await session.execute(select(1))
            except MissingSessionError as error:
                yield str(error)

        return StreamingResponse(body())

    async with served(app_of(stream)) as client:
        answer = (await client.post("/")).text
    assert answer.startswith("0 ['ada', 'grace']")
    assert "ended" in answer


async def test_a_background_task_is_told_to_open_a_session_of_its_own(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    outcome: asyncio.Future[BaseException | None] = asyncio.Future()

    async def late(session: AsyncSession) -> None:
        try:
            session.add(Person(name="late"))
            await session.flush()
        except MissingSessionError as error:
            outcome.set_result(error)

    async def create(tasks: BackgroundTasks, session: AsyncSession = Depends(get_db)) -> None:
        tasks.add_task(late, session)

    async with served(app_of(create)) as client:
        assert (await client.post("/")).status_code == 200
        assert isinstance(await outcome, MissingSessionError)
    assert engine.pool.checkedout() == 0


async def test_an_exhausted_pool_can_be_mapped_to_503(database_url: str, maker: Maker) -> None:
    small = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    get_db = create_db_dependency(async_sessionmaker(small))

    async def look(session: AsyncSession = Depends(get_db)) -> None:
        await session.execute(select(1))

    app = app_of(look)

    @app.exception_handler(PoolExhaustedError)
    async def busy(request: Request, error: PoolExhaustedError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=503)

    async with served(app) as client:
        async with small.connect():
            response = await client.post("/")
        assert (await client.post("/")).status_code == 200
    assert response.status_code == 503
    assert "pool_size" in response.json()["error"]
    await small.dispose()


async def test_a_websockets_session_is_committed_when_its_endpoint_ends(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    app = FastAPI()

    @app.websocket("/")
    async def chat(socket: WebSocket, session: AsyncSession = Depends(get_db)) -> None:
        await socket.accept()
        session.add(Person(name=await socket.receive_text()))
        await socket.send_text("noted")

    async with served(app) as client:
        address = str(client.base_url).replace("http", "ws")
        async with connect(address) as socket:
            await socket.send("grace")
            assert await socket.recv() == "noted"
            await socket.wait_closed()
    assert await names(engine) == ["ada", "grace"]


async def test_a_dependency_can_be_overridden_in_tests(
    maker: Maker, get_db: SessionDependency[AsyncSession]
) -> None:
    async with maker() as mine:

        async def override() -> AsyncIterator[AsyncSession]:
            yield mine

        async def compare(session: AsyncSession = Depends(get_db)) -> bool:
            return session is mine

        app = app_of(compare)
        app.dependency_overrides[get_db] = override
        async with served(app) as client:
            assert (await client.post("/")).json() is True


async def test_the_session_does_not_show_in_the_applications_schema(
    get_db: SessionDependency[AsyncSession],
) -> None:
    async def create(session: AsyncSession = Depends(get_db)) -> None: ...

    operation = app_of(create).openapi()["paths"]["/"]["post"]
    assert "parameters" not in operation
    assert "requestBody" not in operation


async def test_a_request_without_a_place_for_the_session_is_refused(
    get_db: SessionDependency[AsyncSession],
) -> None:
    connection = HTTPConnection({"type": "http", "headers": []})
    with pytest.raises(MissingSessionError, match=r"FastAPI 0\.121"):
        await anext(get_db(connection))


async def test_outside_fastapi_the_dependency_is_a_generator(
    engine: AsyncEngine, get_db: SessionDependency[AsyncSession]
) -> None:
    async for session in get_db():
        session.add(Person(name="grace"))
    with pytest.raises(ZeroDivisionError):
        async with asynccontextmanager(get_db)() as session:
            session.add(Person(name="nobody"))
            await session.flush()
            raise ZeroDivisionError
    assert await names(engine) == ["ada", "grace"]
