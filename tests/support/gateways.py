"""Gateways in the test's own event loop, each a real server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.relay import JetStreamSource
from rowsignal.sse import Limits, create_sse_router
from support.event_streams import Item, Order
from support.web_server import Site, serving


@asynccontextmanager
async def gateway(
    nats: str, database: str, *, engine: AsyncEngine | None = None, **options: Any
) -> AsyncIterator[Site]:
    """Serve streams of orders and items from NATS; with an engine, the current rows as well."""
    source = JetStreamSource(nats, database, engine=engine)
    options.setdefault("limits", Limits(heartbeat=0.3, write_interval=0.01))
    options.setdefault("tables", [Order, Item])
    app = FastAPI()
    app.include_router(create_sse_router(source=source, **options))
    async with serving(app) as site:
        yield site
    await source.aclose()
