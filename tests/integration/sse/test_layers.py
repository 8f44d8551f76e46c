"""Streams below middleware: what a layer does around `send` concerns its own stream alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowsignal.listener import Listener
from rowsignal.sse import Limits, Outlet
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.grants import grant_everything
from rowsignal.sse.http.router import router_of
from support.event_streams import EventReader, Order, execute, make_tables, reading
from support.web_server import serving

PATH = "/v1/changes/orders"
ROWS = 3000  # of four kilobytes: more than the buffers of a socket hold
BATCH = 10  # written directly: shorter than a piece

inside: ContextVar[object] = ContextVar("inside", default=None)


class TimeLimit:
    """Ends a response whose client takes no bytes for a while."""

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self.app = app
        self.seconds = seconds
        self.ended = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            async with asyncio.timeout(self.seconds):
                await send(message)

        try:
            await self.app(scope, receive, send_in_time)
        except TimeoutError:
            self.ended += 1


class Context:
    """Sets a context variable during each message, as tracing does for its spans."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_within(message: Message) -> None:
            token = inside.set(message)
            try:
                await send(message)
            finally:
                inside.reset(token)

        await self.app(scope, receive, send_within)


async def through(request: Request, call_next: Any) -> Response:
    return await call_next(request)


def application(engine: AsyncEngine) -> FastAPI:
    app = FastAPI()
    outlet = Outlet(engine, exposures_of([Order]), Limits(max_buffer_bytes=2**24))
    app.include_router(router_of(outlet, grant_everything), prefix="/v1")
    return app


@asynccontextmanager
async def two_readers(
    engine: AsyncEngine, app: ASGIApp
) -> AsyncIterator[tuple[EventReader, EventReader]]:
    """Serve an application, with one reader that need not be read from and one that is."""
    async with (
        Listener(engine),
        serving(app) as site,
        reading(site.port, PATH, buffer=4096) as slow,
        reading(site.port, PATH) as quick,
    ):
        for reader in (slow, quick):
            await reader.until(lambda event: event.id != "")
        yield slow, quick


@pytest.mark.parametrize("layers", ["pure", "with BaseHTTPMiddleware"])
async def test_layers_around_send_pass_every_change_on(engine, layers) -> None:
    """A reader that stalls for a while, beside one that does not, gets each change once."""
    await make_tables(engine)
    app = application(engine)
    app.add_middleware(Context)
    app.add_middleware(TimeLimit, seconds=30)
    if layers != "pure":
        app.middleware("http")(through)
    async with two_readers(engine, app) as (slow, quick):
        for first in range(0, ROWS, BATCH):
            await fill(engine, first, first + BATCH - 1)
            await quick.until(lambda event, last=first + BATCH - 1: event.key == last)
        await slow.until(lambda event: event.key == ROWS - 1)
        for reader in (slow, quick):
            keys = [event.key for event in reader.events if event.name == "insert"]
            assert keys == list(range(ROWS))


async def test_a_time_limit_of_a_layer_ends_the_stalled_stream_alone(engine) -> None:
    await make_tables(engine)
    guarded = TimeLimit(application(engine), seconds=0.3)
    async with two_readers(engine, guarded) as (_, quick):
        row = 0
        async with asyncio.timeout(60):
            while not guarded.ended:
                await fill(engine, row, row + BATCH - 1)
                await quick.until(lambda event, last=row + BATCH - 1: event.key == last)
                row += BATCH
        await fill(engine, row, row)
        await quick.until(lambda event: event.key == row)
        keys = [event.key for event in quick.events if event.name == "insert"]
        assert keys == list(range(row + 1))
    assert guarded.ended == 1


async def fill(engine, first: int, last: int) -> None:
    rows = f"select g, repeat(md5(g::text), 120), 1, 7, '' from generate_series({first}, {last}) g"
    await execute(engine, f"insert into orders {rows}")
