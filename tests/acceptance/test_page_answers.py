"""The page answers questions, in Chromium: what happened to a row, when, and beside what."""

import ast
import asyncio
import json
import re
import textwrap
from typing import Any

import pytest
from playwright.async_api import BrowserContext, Locator, Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.dashboard_pages import app_of, first_rows, is_live, run, shown
from acceptance.live_service import running
from rowsignal.demo.shop_tables import Order
from rowsignal.triggers import install_triggers

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

ODD_ROW = 'insert into "Odd ""order""" values ($$it\'s$$, $$back\\slash$$, 1)'
PAINTED = """(ink) => {
  const canvas = document.getElementById("timeline");
  const probe = document.createElement("canvas").getContext("2d");
  document.body.style.setProperty("outline-color", `var(--${ink})`);
  probe.fillStyle = getComputedStyle(document.body).outlineColor;
  probe.fillRect(0, 0, 1, 1);
  const wanted = [...probe.getImageData(0, 0, 1, 1).data].join();
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < data.length; at += 4) {
    if (data.slice(at, at + 4).join() === wanted) return true;
  }
  return false;
}"""


def section(page: Page, title: str) -> Locator:
    heading = page.get_by_role("heading", name=re.compile(f"^{title}"))
    return page.locator("#inspector section").filter(has=heading)


async def text_of(locator: Locator) -> str:
    return await locator.text_content() or ""


async def test_a_change_opens_with_its_row_its_past_and_its_transaction(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    await run(shop, "update shop.orders set status = 'new' where id = 2")
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(
            shop,
            "update shop.orders set status = 'paid', total = 12.50 where id = 2",
            "update shop.items set stock = 5 where id = 1",
        )
        await page.locator("#changes li", has_text="12.50").locator(".what").click()
        await expect(page.locator("#inspector-title")).to_contain_text("update shop.orders 2")
        lines = section(page, "Change").locator("tr.differs")
        await expect(lines.locator("th")).to_have_text(["total", "status"])
        await expect(lines.locator("del").last).to_have_text("new")
        await expect(lines.locator("ins")).to_have_text(["12.50", "paid"])
        await expect(section(page, "Row now").locator("pre")).to_contain_text('"status": "paid"')
        row = json.loads(await text_of(section(page, "Row now").locator("pre")))
        assert (row["id"], row["total"]) == (2, "12.50")
        await expect(section(page, "History").locator("li")).to_have_count(1)
        others = section(page, "Transaction").locator("li")
        await expect(others).to_have_count(1)
        await expect(others).to_contain_text("shop.items 1")
        await others.locator("button").click()
        await expect(page.locator("#inspector-title")).to_contain_text("update shop.items 1")
        await expect(section(page, "Transaction").locator("li")).to_contain_text("shop.orders 2")
        await page.keyboard.press("Escape")
        await expect(page.locator("#inspector")).to_be_hidden()
        assert "row=" not in page.url


async def test_its_code_leads_to_the_row_from_elsewhere(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(shop, "update shop.orders set quantity = quantity + 1 where id = 3")
        await page.locator("#changes li.update .what").first.click()
        elsewhere = section(page, "Elsewhere")
        code = elsewhere.locator("pre")
        address = re.search(r"'(http[^']+)'", await text_of(code))
        assert address
        assert [row["id"] for row in await first_rows(address[1], 1)] == [3]
        await elsewhere.get_by_role("button", name="psql").click()
        async with shop.connect() as connection:
            found = await connection.execute(text(await text_of(code)))
            assert [row.id for row in found] == [3]
        await elsewhere.get_by_role("button", name="Python").click()
        assert await first_change(await text_of(code), shop) == {"id": 3}


async def first_change(program: str, engine: AsyncEngine) -> Any:
    """Run a program of the page; return the key of the change that it meets first."""
    told: asyncio.Queue[Any] = asyncio.Queue()
    body = f"async def main():\n{textwrap.indent(program, '    ')}"
    names: dict[str, Any] = {"engine": engine, "Order": Order, "print": told.put_nowait}
    exec(compile(ast.parse(body), "page", "exec"), names)
    tasks = [asyncio.create_task(names["main"]()), asyncio.create_task(keep_writing(engine))]
    try:
        async with asyncio.timeout(60):
            return dict((await told.get()).key)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def keep_writing(engine: AsyncEngine) -> None:
    """Change two rows again and again: the reader does not tell when it has begun."""
    while True:
        await run(engine, "update shop.orders set quantity = 1 - quantity where id in (3, 4)")


async def test_odd_names_and_keys_are_quoted_in_queries(page: Page, engine_of_odd: str) -> None:
    async with running(app_of(engine_of_odd)) as url, shown(page, url):
        await is_live(page)
        await page.locator("#changes li .what").first.click()
        elsewhere = section(page, "Elsewhere")
        await elsewhere.get_by_role("button", name="psql").click()
        code = await text_of(elsewhere.locator("pre"))
        assert code == (
            'SELECT * FROM public."Odd ""order"""\n'
            """WHERE "select" = 'it''s' AND b = E'back\\\\slash';"""
        )
        await expect(section(page, "Row now").locator("pre")).to_contain_text('"n": 1')


@pytest.fixture
def engine_of_odd(database_url: str) -> str:
    """Database with a table whose name and key need every kind of quotes."""

    async def furnish() -> None:
        engine = create_async_engine(database_url)
        await run(
            engine,
            'create table "Odd ""order""" ("select" text, b text, n int,'
            ' primary key ("select", b))',
        )
        await install_triggers(engine, ['Odd "order"'], log=True)
        await run(engine, ODD_ROW)
        await engine.dispose()

    asyncio.run(furnish())
    return database_url


async def test_a_page_shows_what_happened_before_it_was_open(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url:
        await run(shop, "update shop.orders set quantity = quantity + 1 where id <= 2")
        async with shown(page, url):
            await is_live(page)
            past = page.locator("#changes li.past")
            await expect(past).to_have_count(2)
            await expect(past.first.locator(".what")).to_have_text("update shop.orders 2")
            await expect(past.first.locator(".together")).to_have_text("2 in one transaction")
            await expect(past.first.locator("time")).to_have_text(
                re.compile(r"^\d\d:\d\d:\d\d\.\d{3}$")
            )
            await page.wait_for_function(PAINTED, arg="update")
            await run(shop, "update shop.items set stock = 9 where id = 1")
            await expect(page.locator("#changes li")).to_have_count(3)
            await expect(page.locator("#changes li").first).to_contain_text("shop.items")


async def test_a_transaction_is_one_group_however_it_is_filtered(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(
            shop,
            "update shop.orders set status = 'delivered' where id = 1",
            "update shop.items set stock = 1 where id <= 2",
        )
        await run(shop, "update shop.items set stock = 2 where id = 1")
        rows = page.locator("#changes li")
        await expect(rows).to_have_count(4)
        await expect(page.locator("#changes li.joined")).to_have_count(3)
        await expect(page.locator("#changes li.first .together")).to_have_text(
            "3 in one transaction"
        )
        await page.fill("#filter", "orders")
        await expect(page.locator("#changes li:visible")).to_have_count(1)
        await expect(page.locator("#changes li:visible .together")).to_have_text("")


async def test_a_link_leads_to_the_same_view(
    context: BrowserContext, shop: AsyncEngine, shop_url: str
) -> None:
    first, second = await context.new_page(), await context.new_page()
    async with running(app_of(shop_url)) as url:
        await run(shop, "update shop.items set stock = 31 where id = 4")
        async with shown(first, url):
            await is_live(first)
            await first.locator("[data-table='shop.items'] button").click()
            await expect(first.locator("#filter")).to_have_value("shop.items")
            await first.click(".kind.delete")
            await first.locator("#changes li.update .what").first.click()
            await expect(section(first, "Row now").locator("pre")).to_contain_text('"stock": 31')
            link = first.url
        async with shown(second, link):
            await expect(second.locator("#inspector-title")).to_contain_text("shop.items 4")
            await expect(section(second, "Row now").locator("pre")).to_contain_text('"stock": 31')
            await second.keyboard.press("Escape")
            await expect(second.locator("#filter")).to_have_value("shop.items")
            await expect(second.locator(".kind.delete")).to_have_attribute("aria-pressed", "false")
            await second.evaluate("location.hash = 'row=shop.orders/4000'")
            body = second.locator("#inspector-body")
            await expect(body).to_have_text("Nothing of this row is in the log.")
            for place in ("shop.orders", "a/../../status", "%E0/1", "../..", "shop.orders/"):
                await second.evaluate(
                    "(it) => (location.hash = `row=${encodeURIComponent(it)}`)", place
                )
                await expect(body).to_have_text("This link names no row.")


async def test_readers_are_listed_with_their_lag(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        cells = page.locator("#streams tbody tr").first.locator("th, td")
        await expect(cells.first).to_have_text("anonymous")
        await expect(cells.nth(1)).to_contain_text("shop.orders")
        await expect(cells.nth(3)).to_have_text("none")
        await expect(cells.nth(5)).to_have_text("0")


async def test_the_doctor_says_what_mends_it(page: Page, shop: AsyncEngine, shop_url: str) -> None:
    await run(shop, "alter table shop.items disable trigger all")
    async with running(app_of(shop_url)) as url, shown(page, url):
        finding = page.locator("#findings li", has_text="shop.items")
        await expect(finding).to_contain_text("Triggers disabled")
        await expect(finding.locator("code")).to_have_text("rowsignal install shop.items --log")


async def test_what_cannot_be_looked_up_is_said_and_not_left_open(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url:
        await page.goto(url)
        await is_live(page)
        await run(shop, "update shop.items set stock = 3 where id = 1")
        await page.route("**/v1/history/**", lambda route: route.abort())
        await page.locator("#changes li.update .what").first.click()
        await expect(section(page, "History")).to_contain_text("The connection failed.")
