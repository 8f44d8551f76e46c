"""The page of a gateway, in Chromium: what it shows of NATS, and what it says it cannot show."""

import gc
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine

from acceptance.dashboard_pages import is_live, run, shown
from support.gateways import GatewayProcess, gateway_process
from support.nats_server import nats_server
from support.relays import RelayProcess, relay_process

pytest_plugins = ["acceptance.browser", "acceptance.shops", "acceptance.page_looks"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Carried:
    """A shop whose changes come by a relay, NATS and a gateway, each a process."""

    relay: RelayProcess
    gateway: GatewayProcess


@pytest_asyncio.fixture(loop_scope="module")
async def carried(shop: AsyncEngine, tmp_path: Path) -> AsyncIterator[Carried]:
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(nats_server(tmp_path / "nats"))
        relay = await stack.enter_async_context(relay_process(shop, nats.url))
        await relay.until("relaying")
        arguments = ("--nats", nats.url, "--database", shop.url.database or "")
        gateway = await stack.enter_async_context(gateway_process(*arguments))
        yield Carried(relay, gateway)
    gc.collect()


async def test_a_gateways_page_shows_what_is_carried(
    page: Page, shop: AsyncEngine, carried: Carried
) -> None:
    async with shown(page, carried.gateway.address):
        await is_live(page)
        await expect(page.locator("#headline")).to_have_text("Listening to 3 tables.")
        await expect(page.locator("#name-listener")).to_have_text("Relay")
        await expect(page.locator("#vital-listener")).to_have_text("at work")
        await expect(page.locator("#name-log")).to_have_text("Stream")
        await expect(page.locator("#note-log")).to_have_text(re.compile(r"message"))
        await run(shop, "update shop.items set stock = stock + 1 where id = 1")
        await expect(page.locator("[data-table='shop.items'] .update")).to_have_text("1")
        await expect(page.locator("#changes li .what").first).to_have_text("update shop.items 1")
        await expect(page.locator("#vital-readers")).to_have_text("1")
        builder = page.locator("#builder")
        await expect(builder.locator("[name=table] option")).to_have_count(3)
        await expect(builder.locator("[name=snapshot]")).to_be_disabled()
        await builder.locator("[type=submit]").click()
        await expect(builder.locator(".said")).to_contain_text("live")


async def test_a_gateways_page_says_what_needs_the_database(
    page: Page, shop: AsyncEngine, carried: Carried
) -> None:
    async with shown(page, carried.gateway.address):
        await is_live(page)
        await run(shop, "update shop.items set stock = stock + 1 where id = 1")
        await page.locator("#changes li .what").first.click()
        history = page.locator("#inspector-body section", has_text="History")
        await expect(history).to_contain_text("A gateway shows no history")
        await page.locator("#inspector-close").click()
        await expect(page.locator("#findings")).to_contain_text("rowsignal doctor --nats URL")
        await expect(page.locator("#doctor-note")).to_contain_text("one finding, 2 in order")


async def test_a_gateways_page_tells_that_no_relay_is_at_work(
    page: Page, shop: AsyncEngine, carried: Carried
) -> None:
    async with shown(page, carried.gateway.address):
        await is_live(page)
        await carried.relay.kill()
        await expect(page.locator("#headline")).to_have_text("No relay is at work.")
        await expect(page.locator("#vital-listener")).to_have_text("silent")
        await page.locator("#examine").click()
        await expect(page.locator("#findings")).to_contain_text("No relay says that it is at work")


async def test_a_gateways_page_looks_well(
    page: Page, shop: AsyncEngine, carried: Carried, examine: Callable[[Page, str], Awaitable[None]]
) -> None:
    async with shown(page, carried.gateway.address):
        await is_live(page)
        await run(shop, "update shop.orders set status = 'paid' where id < 6")
        await expect(page.locator("#changes li")).not_to_have_count(0)
        await examine(page, "gateway")
