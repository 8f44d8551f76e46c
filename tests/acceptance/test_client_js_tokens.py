"""The browser client with bearer tokens that expire, from another origin than the service's."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import jwt
import pytest
import pytest_asyncio
from fastapi import HTTPException
from playwright.async_api import Page, Request
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request as Asked
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from acceptance.live_service import outlet_of, running, shop_app
from rowsignal.demo.shop_tables import Order
from rowsignal.embedded.ports import free_port
from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from rowsignal.sse import Grant, TableGrant, create_sse_router
from support import web_server

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "a secret of at least thirty-two bytes, for these tests"
LIFETIME = 1.5
SUBSCRIBE = """async ({ service, transport }) => {
  const { subscribe } = await import(`${service}/client.js`);
  const stale = await (await fetch("/token?age=60")).text();
  window.asked = []; window.seen = []; window.byes = 0;
  const token = async ({ refused }) => {
    asked.push(refused);
    return asked.length === 1 ? stale : (await fetch("/token?age=0")).text();
  };
  window.sub = subscribe({
    tables: "shop.orders", columns: "quantity", token, transport, retryDelays: [20, 200],
    where: { id: { eq: 1 } },
    onChange: ({ source, row }) => source === "stream" && seen.push(row.quantity),
    onState: ({ reason }) => { if (reason === "token expired") byes += 1; },
  });
  await sub.ready;
}"""


async def issue(request: Asked) -> Response:
    """Sign a token as the page's own server does; some are old already."""
    claims = {
        "sub": "ada",
        "aud": "rowsignal",
        "exp": time.time() + LIFETIME - float(request.query_params["age"]),
        "rowsignal": {"tables": {"shop.orders": {}}},
    }
    return Response(jwt.encode(claims, SECRET, "HS256"), media_type="text/plain")


async def blank(_: Asked) -> Response:
    return HTMLResponse("<!doctype html><title>blank</title>")


@pytest_asyncio.fixture(loop_scope="module")
async def origin() -> AsyncIterator[str]:
    """Address of a page that is not the service's."""
    app = Starlette(routes=[Route("/", blank), Route("/token", issue)])
    async with web_server.serving(app) as site:
        yield site.address


@asynccontextmanager
async def guarded(shop: AsyncEngine, folder: Path, origin: str) -> AsyncIterator[str]:
    """Run the service with a token key, for pages of that origin."""
    settings = Settings(
        database_url=shop.url.render_as_string(hide_password=False),
        port=free_port(),
        token_secret=SECRET,
        token_leeway=0,
        cors_origins=(origin,),
        ticket_dir=folder / "tickets",
        log_level="error",
    )
    app = create_app(settings)
    async with web_server.serving(app, port=settings.port) as site:
        try:
            yield site.address
        finally:
            outlet_of(app).close_streams()


async def write(shop: AsyncEngine, quantity: int) -> None:
    async with shop.begin() as connection:
        statement = text("update shop.orders set quantity = :quantity where id = 1")
        await connection.execute(statement, {"quantity": quantity})


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_streams_outlive_their_tokens_and_miss_nothing(
    page: Page, shop: AsyncEngine, origin: str, tmp_path: Path, transport: str
) -> None:
    asked: list[str] = []

    def remember(request: Request) -> None:
        asked.append(request.url)

    page.on("request", remember)
    async with guarded(shop, tmp_path, origin) as service:
        await page.goto(origin)
        await page.evaluate(SUBSCRIBE, {"service": service, "transport": transport})
        first = written = 100
        # A busy machine may take longer than a token's life to come here.
        await page.evaluate("byes = 0")
        while written == first or await page.evaluate("byes") < 2:
            written += 1
            await write(shop, written)
            await asyncio.sleep(0.02)  # a writer's pace: many changes in each token's life
        await page.wait_for_function(f"seen.at(-1) === {written}")
        assert await page.evaluate("seen") == list(range(first + 1, written + 1))
        assert (await page.evaluate("asked"))[:3] == [False, True, False]
        await page.close()
    with_ticket = [url for url in asked if "ticket=" in url]
    assert bool(with_ticket) is (transport == "eventsource")
    bare = [url.partition("ticket=")[0] for url in asked]
    assert not [url for url in bare if "eyJ" in url]  # how a token begins


async def test_a_router_without_tickets_serves_readers_with_tokens(
    page: Page, shop: AsyncEngine
) -> None:
    def authorize(request: Asked) -> Grant:
        if request.headers.get("authorization") != "Bearer mine":
            raise HTTPException(401, "no token of ours")
        return Grant(principal="ada", tables={"shop.orders": TableGrant()})

    app = shop_app(shop)
    app.include_router(
        create_sse_router(shop, {Order: None}, authorize=authorize), prefix="/guarded"
    )
    async with running(app) as service:
        await page.goto(service)
        size = await page.evaluate(
            """async () => {
              const { subscribe } = await import("/client.js");
              const options = { tables: "shop.orders", url: "/guarded", token: "mine" };
              window.sub = await subscribe(options).ready;
              return sub.rows.size;
            }"""
        )
        async with shop.connect() as connection:
            assert size == await connection.scalar(text("select count(*) from shop.orders"))
        await page.close()
