"""The browser client against the stream router over PostgreSQL, while a shop is busy."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import pytest
from playwright.async_api import BrowserContext, Page
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.live_service import furnish, running, shop_app
from rowsignal.demo.shop import run_shop
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.listener import Listener

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

SUBSCRIBE = """async (options) => {
  const { subscribe, keyOf } = await import("/client.js");
  window.seen = []; window.snapshots = 0; window.rebuilt = new Map();
  window.sub = subscribe({
    tables: ["shop.orders", "shop.items"], retryDelays: [20, 200], ...options,
    onSnapshot: () => { window.snapshots += 1; },
    onChange: (change) => {
      const { operation, table, key, row } = change;
      window.seen.push(change);
      const at = `${table} ${keyOf(key)}`;
      if (operation === "delete") window.rebuilt.delete(at); else window.rebuilt.set(at, row);
    },
  });
  await window.sub.ready;
}"""
ORDERS = "select id, status, quantity, total::text from shop.orders order by id"
SHOWN = """[...sub.of("shop.orders").values()]
  .map(({id, status, quantity, total}) => [id, status, quantity, total])
  .sort((one, other) => one[0] - other[0])"""
AGREES = f"(expected) => JSON.stringify({SHOWN}) === expected"
TWICE = """seen.filter(({source}) => source === "stream")
  .map(({transactionId, table, key, operation}) => [transactionId, table, key.id, operation].join())
  .filter((one, place, all) => all.indexOf(one) !== place)"""


@asynccontextmanager
async def business(shop: AsyncEngine) -> AsyncIterator[None]:
    """A busy shop while the block runs."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_shop(shop, rate=60, stop=stop))
    yield
    stop.set()
    assert await task > 0


async def open_page(page: Page, url: str, **options: object) -> None:
    await page.goto(url)
    await page.evaluate(SUBSCRIBE, options)


async def grow(page: Page, number: int) -> None:
    """Wait for that many more changes."""
    await page.wait_for_function(f"seen.length >= {await page.evaluate('seen.length') + number}")


async def agrees(page: Page, shop: AsyncEngine) -> None:
    """Wait until the page shows exactly the table; what it was told must add up to the same."""
    async with shop.connect() as connection:
        rows = [list(row) for row in await connection.execute(text(ORDERS))]
    await page.wait_for_function(AGREES, arg=json.dumps(rows, separators=(",", ":")))
    told, held = await page.evaluate("[rebuilt.size, sub.rows.size + sub.of('shop.items').size]")
    assert told == held
    assert await page.evaluate(TWICE) == []


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_restart_of_the_service_costs_a_page_nothing(
    page: Page, shop: AsyncEngine, transport: str
) -> None:
    port = free_port()
    async with business(shop):
        async with running(shop_app(shop), port=port) as url:
            await open_page(page, url, transport=transport)
            await grow(page, 10)
        async with running(shop_app(shop), port=port):
            await grow(page, 20)
    async with running(shop_app(shop), port=port):
        await agrees(page, shop)
    assert await page.evaluate("snapshots") == 1


@pytest.mark.parametrize(("mode", "snapshots"), [("fast", 1), ("immediate", 2)])
async def test_a_restart_of_the_database_costs_a_page_at_most_a_snapshot(
    page: Page, mode: Literal["fast", "immediate"], snapshots: int
) -> None:
    """A shutdown keeps the log's positions, a crash begins another log."""
    with EmbeddedPostgres() as server:
        await furnish(server.url)
        shop = create_async_engine(server.url)
        async with running(shop_app(shop)) as url:
            async with business(shop):
                await open_page(page, url)
                await grow(page, 10)
            await agrees(page, shop)
            await asyncio.to_thread(server.restart, mode)
            await shop.dispose()
            async with business(shop):
                await grow(page, 20)
            await agrees(page, shop)
            assert await page.evaluate("snapshots") == snapshots
        await Listener.of(shop).close()
        await shop.dispose()


async def test_tabs_on_one_connection_agree_when_the_leader_goes(
    context: BrowserContext, shop: AsyncEngine
) -> None:
    tabs = [await context.new_page() for _ in range(3)]
    async with running(shop_app(shop)) as url:
        async with business(shop):
            for tab in tabs:
                await open_page(tab, url)
            assert await tabs[0].evaluate("sub.state.role") == "leader"
            await grow(tabs[2], 10)
            await tabs[0].close()
            await grow(tabs[2], 20)
        await agrees(tabs[1], shop)
        await agrees(tabs[2], shop)


async def test_a_filtered_page_shows_what_fits_and_drops_what_left(
    page: Page, shop: AsyncEngine
) -> None:
    async with running(shop_app(shop)) as url:
        async with business(shop):
            await open_page(page, url, tables="shop.orders", where=["status.eq.new"])
            await grow(page, 15)
        async with shop.connect() as connection:
            query = text("select id from shop.orders where status = 'new' order by id")
            new = list(await connection.scalars(query))
        held = "[...sub.rows.values()].map(({id}) => id).sort((a, b) => a - b)"
        await page.wait_for_function(
            f"(ids) => JSON.stringify({held}) === ids", arg=json.dumps(new, separators=(",", ":"))
        )
