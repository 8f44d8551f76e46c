"""A FastAPI application with the stream router over a real database, for the browser tests."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.types import ASGIApp

import rowsignal.service
from rowsignal.demo.shop_tables import Customer, Item, Order
from rowsignal.sse import Limits, create_sse_router

CLIENT = Path(rowsignal.service.__file__).parent / "dashboard" / "client.js"


class StreamsEndFirst(uvicorn.Server):
    """uvicorn waits for open answers before it tells an application that it is over."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))


@asynccontextmanager
async def running(app: ASGIApp, *, port: int = 0) -> AsyncIterator[str]:
    """Serve an application while the block runs; yield its address."""
    server = StreamsEndFirst(app)
    with socket.create_server(("127.0.0.1", port)) as listener:
        task = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            await task


def shop_app(engine: AsyncEngine) -> FastAPI:
    """Streams of the shop's tables, the client script, and an empty page."""
    app = FastAPI()
    offered = {Customer: None, Item: None, Order: None}
    app.include_router(create_sse_router(engine, offered, limits=Limits(heartbeat=1)), prefix="/v1")

    @app.get("/")
    async def blank() -> Response:
        return HTMLResponse("<!doctype html><title>blank</title>")

    @app.get("/client.js")
    async def script() -> Response:
        return FileResponse(CLIENT, media_type="text/javascript")

    return app


def free_port() -> int:
    """Port that nobody uses, for a service that is to come back at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
