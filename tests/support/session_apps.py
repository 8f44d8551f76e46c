"""Applications with request sessions, and what they leave behind."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.orm.request_sessions.middleware import create_middleware_and_session_proxy

TABLES = (
    "create table parent (id int primary key)",
    """create table entry (id int primary key,
       parent_id int references parent deferrable initially deferred)""",
)


class AppError(Exception):
    """An error of the application's own, with a handler."""


async def create_tables(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        for statement in TABLES:
            await connection.execute(text(statement))


async def entries(engine: AsyncEngine) -> list[int]:
    """Read what is committed, on a connection of its own."""
    async with engine.connect() as connection:
        return list(await connection.scalars(text("select id from entry order by id")))


class Ledger:
    """An application whose routes write one entry each, in every way a request can end."""

    def __init__(self, engine: AsyncEngine, other: AsyncEngine, **options: Any) -> None:
        self.engine = engine
        self.other = other
        self.entered = asyncio.Event()
        self.finished = asyncio.Event()
        self.ran: list[str] = []
        self.request: asyncio.Task[Any] | None = None
        middleware, self.db = create_middleware_and_session_proxy()
        self.app = FastAPI()
        # SQLModel's session, the default where that is installed, warns at every execute()
        options = {"commit_on_exit": True, "session_args": {"class_": AsyncSession}, **options}
        self.app.add_middleware(middleware, custom_engine=engine, **options)
        self.app.add_middleware(RequestWatch, ledger=self)
        self.app.exception_handler(AppError)(answer_with(418))
        self.app.exception_handler(IntegrityError)(answer_with(409))
        self.app.exception_handler(DBAPIError)(answer_with(503))
        for name in ("plain", "http", "mapped", "unhandled", "returned"):
            self.app.get(f"/{name}/{{ending}}")(getattr(self, name))
        for name in ("streaming", "background", "disconnect", "cancelled"):
            self.app.get(f"/{name}/{{ending}}")(getattr(self, name))

    async def write(self, ending: str) -> None:
        """Write an entry whose commit will work, break a deferred constraint, or find no server."""
        parent = 1 if ending == "deferred" else None
        statement = text("insert into entry values (1, :parent)")
        await self.db.session.execute(statement, {"parent": parent})
        if ending == "lost":
            await kill_backend(self.db.session, self.other)

    async def plain(self, ending: str) -> dict[str, bool]:
        await self.write(ending)
        return {"ok": True}

    async def http(self, ending: str) -> None:
        await self.write(ending)
        raise HTTPException(404)

    async def mapped(self, ending: str) -> None:
        await self.write(ending)
        raise AppError

    async def unhandled(self, ending: str) -> None:
        await self.write(ending)
        raise LookupError

    async def returned(self, ending: str) -> JSONResponse:
        await self.write(ending)
        return JSONResponse({"ok": False}, 422)

    async def streaming(self, ending: str) -> StreamingResponse:
        await self.write(ending)
        return StreamingResponse(self.lines())

    async def lines(self) -> AsyncIterator[str]:
        for row in await entries(self.other):
            yield f"{row} "
        yield f"out: {self.engine.pool.checkedout()}"  # type: ignore[attr-defined]

    async def background(self, ending: str, tasks: BackgroundTasks) -> dict[str, bool]:
        await self.write(ending)
        tasks.add_task(self.ran.append, ending)
        return {"ok": True}

    async def disconnect(self, ending: str, request: Request) -> dict[str, bool]:
        await self.write(ending)
        self.entered.set()
        while (await request.receive())["type"] != "http.disconnect":
            pass
        return {"ok": True}

    async def cancelled(self, ending: str) -> None:
        await self.write(ending)
        self.entered.set()
        await asyncio.Event().wait()


class RequestWatch:
    """Outermost middleware that tells when a request is over, and lets a test cancel it."""

    def __init__(self, app: Any, ledger: Ledger) -> None:
        self.app = app
        self.ledger = ledger

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.ledger.request = asyncio.current_task()
        try:
            await self.app(scope, receive, send)
        finally:
            self.ledger.finished.set()


def answer_with(status: int) -> Callable[[Request, Exception], JSONResponse]:
    def handle(request: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__}, status)

    return handle


async def kill_backend(session: AsyncSession, other: AsyncEngine) -> None:
    """End the server process behind a session, and wait until it is gone."""
    pid = await session.scalar(text("select pg_backend_pid()"))
    async with other.connect() as connection:
        await connection.execute(text("select pg_terminate_backend(:pid, 5000)"), {"pid": pid})


def is_free(engine: AsyncEngine) -> bool:
    """Tell whether every connection is back in the pool."""
    return engine.pool.checkedout() == 0  # type: ignore[attr-defined]
