"""A FastAPI application with the stream router over a real database, for the browser tests."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, HTMLResponse, Response
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

import rowsignal.sse.client
from rowsignal.demo.shop import create_shop
from rowsignal.demo.shop_tables import Base, Customer, Item, Order
from rowsignal.sse import Limits, Outlet
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.grants import grant_everything
from rowsignal.sse.http.router import router_of
from rowsignal.triggers import install_triggers
from support.web_server import serving

CLIENT = Path(rowsignal.sse.client.__file__).with_name("client.js")


@asynccontextmanager
async def running(app: FastAPI, *, port: int = 0) -> AsyncIterator[str]:
    """Serve an application while the block runs; yield its address."""
    async with serving(app, port=port, grace=3) as site:
        try:
            yield site.address
        finally:
            outlet_of(app).close_streams()  # as a SIGTERM would: uvicorn waits for open answers


async def furnish(url: str) -> None:
    """Open the shop in an empty database, its tables logged."""
    engine = create_async_engine(url)
    await create_shop(engine)
    await install_triggers(engine, Base, log=True, row_values=True)
    await engine.dispose()


def outlet_of(app: FastAPI) -> Outlet:
    outlet = app.state.service.outlet if hasattr(app.state, "service") else app.state.outlet
    assert isinstance(outlet, Outlet)
    return outlet


def shop_app(engine: AsyncEngine) -> FastAPI:
    """Streams of the shop's tables, the client script, and an empty page."""
    app = FastAPI()
    offered: dict[object, None] = {Customer: None, Item: None, Order: None}
    app.state.outlet = Outlet(engine, exposures_of(offered), Limits(heartbeat=1))
    app.include_router(router_of(app.state.outlet, grant_everything), prefix="/v1")

    @app.get("/")
    async def blank() -> Response:
        return HTMLResponse("<!doctype html><title>blank</title>")

    @app.get("/client.js")
    async def script() -> Response:
        return FileResponse(CLIENT, media_type="text/javascript")

    return app
