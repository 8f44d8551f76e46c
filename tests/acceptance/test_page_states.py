"""Every state of the page, in Chromium against a real service in that state."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from fastapi import FastAPI
from playwright.async_api import BrowserContext, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.dashboard_pages import SECRET, app_of, is_live, run
from acceptance.live_service import running
from rowsignal.demo.shop_tables import Item
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.service import create_dashboard, grant_everything
from rowsignal.triggers import install_triggers, uninstall_triggers
from support.proxy import through_proxy

pytest_plugins = ["acceptance.browser", "acceptance.shops", "acceptance.page_looks"]
pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

Examine = Callable[[Page, str], Awaitable[None]]

LATE = 30_000  # ms: an outage is noticed in seconds, on a busy machine in more


def token(**claims: object) -> str:
    end = datetime.now(UTC) + timedelta(minutes=5)
    body = {"sub": "ada", "aud": "rowsignal", "exp": end, "rowsignal": claims}
    return jwt.encode(body, SECRET, "HS256")


def headline(page: Page, text: str) -> object:
    return expect(page.locator("#headline")).to_have_text(text, timeout=LATE)


async def test_idle_since_the_beginning(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    async with running(app_of(shop_url)) as url:
        await page.goto(url)
        await is_live(page)
        await headline(page, "Listening to 3 tables.")
        await expect(page.locator("#doctor-note")).to_contain_text("Examined at", timeout=LATE)
        await examine(page, "idle")


async def test_busy(page: Page, shop: AsyncEngine, shop_url: str, examine: Examine) -> None:
    async with running(app_of(shop_url)) as url:
        await run(shop, "update shop.customers set city = 'Lyon' where id < 4")
        await page.goto(url)
        await is_live(page)
        await expect(page.locator("#changes li.past")).not_to_have_count(0)
        for number in range(6):
            await run(
                shop,
                f"update shop.items set stock = {number + 200} where id = {number + 1}",
                f"update shop.orders set status = 'paid', total = {number} where id <= 2",
            )
            await run(shop, f"insert into shop.customers values (default, 'n{number}', 'Graz', 0)")
            await run(shop, f"delete from shop.customers where name = 'n{number}'")
        await expect(page.locator("#changes li.delete")).not_to_have_count(0)
        await expect(page.locator("#changes li.joined")).not_to_have_count(0)
        await expect(page.locator("#vital-readers")).to_have_text("1")
        await expect(page.locator("#streams tbody tr")).to_have_count(1, timeout=LATE)
        await examine(page, "busy")
        await page.locator("#changes li.update .what").first.click()
        dialog = page.locator("#inspector")
        await expect(dialog.locator("ol.entries").first).to_be_visible()
        await expect(dialog.locator(".empty", has_text="Looking")).to_have_count(0)
        await examine(page, "change")


async def test_one_table_is_broken(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    await uninstall_triggers(shop, Item)
    offered = {"shop.items": None, "shop.orders": None}
    async with running(app_of(shop_url, tables=offered)) as url:
        await page.goto(url)
        await headline(page, "Listening, but shop.items needs mending.")
        await expect(page.locator("#doctor-note")).to_contain_text("Examined at", timeout=LATE)
        await examine(page, "broken")


async def test_nothing_is_watched(page: Page, database_url: str, examine: Examine) -> None:
    async with running(app_of(database_url)) as url:
        await page.goto(url)
        await headline(page, "Nothing to watch yet.")
        await examine(page, "empty")


async def test_the_database_is_down(
    page: Page,
    shop: AsyncEngine,
    shop_url: str,
    server: EmbeddedPostgres,
    examine: Examine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("rowsignal.service.findings.AGAIN", 0.0)
    name = shop.url.database
    admin = create_async_engine(server.url, isolation_level="AUTOCOMMIT")
    async with running(app_of(shop_url)) as url:
        await page.goto(url)
        await is_live(page)
        await run(admin, f'alter database "{name}" allow_connections false')
        ended = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        await run(admin, ended)
        await headline(page, "Waiting for PostgreSQL.")
        await page.click("#examine")
        await expect(page.locator("#doctor-note")).to_have_text(
            "The database does not answer just now.", timeout=LATE
        )
        await examine(page, "down")
        await run(admin, f'alter database "{name}" allow_connections true')
        await headline(page, "Listening to 3 tables.")
        await is_live(page)
    await admin.dispose()


async def test_the_database_hangs_and_recovers(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    async with through_proxy(shop_url) as (proxy, far), running(app_of(far)) as url:
        await page.goto(url)
        await is_live(page)
        proxy.stall()
        await headline(page, "Waiting for PostgreSQL.")
        await expect(page.locator("#reach")).not_to_have_attribute("data-status", "live")
        await examine(page, "hung")
        proxy.resume()
        await headline(page, "Listening to 3 tables.")
        await run(shop, "update shop.items set stock = 45 where id = 1")
        await expect(page.locator("#changes ins").first).to_have_text("45", timeout=LATE)


async def test_notifications_do_not_arrive(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    async with (
        through_proxy(shop_url) as (proxy, far),
        running(app_of(shop_url, listen_url=far)) as url,
    ):
        await page.goto(url)
        await is_live(page)
        await proxy.refuse()
        await proxy.cut()
        await headline(page, "Reconnecting to PostgreSQL.")
        await examine(page, "reconnecting")
        await run(shop, "update shop.items set stock = 46 where id = 1")
        await proxy.start()
        await expect(page.locator("#changes ins").first).to_have_text("46", timeout=LATE)
        await headline(page, "Listening to 3 tables.")


async def test_the_service_is_starting(
    page: Page, shop_url: str, examine: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowsignal.service.probe.QUERY_TIMEOUT", 120)
    async with through_proxy(shop_url) as (proxy, far):
        proxy.stall()
        engine = create_async_engine(far)
        site = FastAPI()
        dashboard = create_dashboard(engine, authorize=grant_everything)
        site.mount("/", dashboard)
        site.state.service = dashboard.state.service
        async with running(site) as url:
            await page.goto(url)
            await headline(page, "The service is starting.")
            await expect(page.locator("#begin")).to_be_hidden()
            await examine(page, "starting")
            proxy.resume()
            await headline(page, "Listening to 3 tables.")
            await is_live(page)
            await dashboard.state.service.on_demand.close()
        await engine.dispose()


async def test_the_service_is_gone(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    async with running(app_of(shop_url), port=free_port()) as url:
        await page.goto(url)
        await is_live(page)
        await run(shop, "update shop.items set stock = 77 where id = 1")
        await expect(page.locator("#changes ins").first).to_have_text("77")
    await headline(page, "The service does not answer.")
    await examine(page, "gone")


async def test_the_page_is_not_admitted(page: Page, shop_url: str, examine: Examine) -> None:
    async with running(app_of(shop_url, token_secret=SECRET)) as url:
        await page.goto(url)
        await headline(page, "This service asks who you are.")
        await examine(page, "unauthorised")
        await page.fill("#token", token())
        await page.get_by_role("button", name="Sign in").click()
        await headline(page, "This token may not see the status.")
        await examine(page, "forbidden")


async def test_a_token_of_some_tables_shows_those_alone(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    mine = {"shop.items": {"columns": ["id", "name"]}}
    async with running(app_of(shop_url, token_secret=SECRET)) as url:
        await page.goto(url)
        await page.fill("#token", token(tables=mine, status=True))
        await page.get_by_role("button", name="Sign in").click()
        await is_live(page)
        await run(shop, "update shop.items set name = 'Bowl', price = 77.77 where id = 1")
        await page.locator("#changes li.update .what").first.click()
        await expect(page.locator("#inspector .diff ins")).to_have_text("Bowl")
        await expect(page.locator("#inspector .code pre").first).to_contain_text("Bowl")
        assert "77.77" not in await page.locator("body").inner_text()
        await page.keyboard.press("Escape")
        await expect(page.locator("#doctor-note")).to_contain_text("every table")
        await examine(page, "some-tables")


async def test_the_stream_of_the_page_is_refused(
    page: Page, shop: AsyncEngine, shop_url: str, examine: Examine
) -> None:
    async with running(app_of(shop_url, max_streams=1)) as url:
        first = await page.context.new_page()
        await first.goto(url)
        await is_live(first)
        other = await page.context.browser.new_context()  # type: ignore[union-attr]  # it has one
        second = await other.new_page()
        await second.goto(url)
        await headline(second, "This page receives no changes just now.")
        await expect(second.locator("#detail")).to_contain_text("All 1 streams are taken")
        await examine(second, "full")
        await other.close()


async def test_more_tables_than_streams_may_have(
    page: Page, database_url: str, examine: Examine
) -> None:
    engine = create_async_engine(database_url)
    schemas = ("audit", "public", "sales")
    names = [f"{schemas[it % 3]}.part_{it:03}" for it in range(200)]
    await run(engine, "create schema audit", "create schema sales")
    await run(engine, *(f"create table {it} (id int primary key, n int)" for it in names))
    await install_triggers(engine, names, log=True)
    async with running(app_of(database_url)) as url:
        await page.goto(url)
        await headline(page, "Listening to 200 tables.")
        await is_live(page)
        await expect(page.locator("#note-rate")).to_have_text("on 200 tables, 150 shown live")
        await expect(page.locator(".group h3").first).to_have_text("audit 67 tables")
        await examine(page, "many")
    await engine.dispose()


async def test_a_page_that_is_left_asks_for_nothing(
    context: BrowserContext, page: Page, shop_url: str
) -> None:
    """The mounted dashboard lets go of the database after a while without requests."""
    engine = create_async_engine(shop_url)
    dashboard = create_dashboard(engine, authorize=grant_everything, idle_timeout=0.2)
    site = FastAPI()
    site.mount("/", dashboard)
    service = site.state.service = dashboard.state.service
    async with running(site) as url:
        await page.goto(url)
        await is_live(page)
        assert service.on_demand.is_running
        await page.close()
        async with asyncio.timeout(30):
            await service.on_demand.ended()
        other = await context.new_page()
        await other.goto(url)
        await is_live(other)
        await service.on_demand.close()
    await engine.dispose()
