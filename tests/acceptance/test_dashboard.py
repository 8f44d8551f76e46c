"""The page of the service, in Chromium, over PostgreSQL: what a person sees and can do."""

import asyncio
import re
from datetime import UTC, datetime, timedelta

import jwt
import pytest
from playwright.async_api import BrowserContext, Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.dashboard_pages import SECRET, app_of, first_rows, is_live, run, shown
from acceptance.live_service import running
from rowsignal.demo.shop_tables import Item
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.triggers import install_triggers, uninstall_triggers

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTRAST = """() => {
  const light = (colour) => {
    const pen = document.createElement("canvas").getContext("2d");
    pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const resolve = (name) => {
    document.body.style.setProperty("outline-color", `var(--${name})`);
    return light(getComputedStyle(document.body).outlineColor);
  };
  const ratio = (one, other) => {
    const [dark, bright] = [resolve(one), resolve(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const inks = ["ink", "muted", "insert", "update", "delete", "truncate", "wait", "bad"];
  return Math.min(...["paper", "sheet", "well"].flatMap((on) => inks.map((ink) => ratio(ink, on))));
}"""
FITS = """() => new Promise((settled) => requestAnimationFrame(() => {
  const { scrollWidth, clientWidth } = document.documentElement;
  settled(scrollWidth <= clientWidth);
}))"""
UNNAMED = """() => [...document.querySelectorAll("button, input, select")]
  .filter((it) => it.checkVisibility())
  .filter((it) => !(it.textContent.trim() && it.tagName === "BUTTON") && !it.ariaLabel
    && !it.labels?.length)
  .map((it) => it.outerHTML)"""


async def test_a_glance_tells_how_things_are(page: Page, shop: AsyncEngine, shop_url: str) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await expect(page.locator("#headline")).to_have_text("Listening to 3 tables.")
        await expect(page.locator("body")).to_have_attribute("data-tone", "good")
        await expect(page.locator(".card h4")).to_have_text(
            ["shop.customers", "shop.items", "shop.orders"]
        )
        await expect(page.locator("#vital-listener")).to_have_text("listening")
        await run(shop, "update shop.orders set status = 'paid' where id = 1 and status <> 'paid'")
        await run(shop, "update shop.items set stock = stock + 1 where id = 1")
        await expect(page.locator("[data-table='shop.items'] .update")).to_have_text("1")
        await expect(page.locator("#aside")).to_have_text(re.compile(r"A change is here in .+ m?s"))
        await expect(page.locator("#vital-readers")).to_have_text("1")


async def test_the_feed_shows_what_was_beside_what_is(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    await run(shop, "update shop.orders set status = 'new' where id = 1")
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(shop, "update shop.orders set status = 'paid' where id = 1")
        entry = page.locator("#changes li").first
        await expect(entry.locator(".what")).to_have_text("update shop.orders 1")
        await expect(entry.locator("del")).to_have_text("new")
        await expect(entry.locator("ins")).to_have_text("paid")
        await run(
            shop,
            "insert into shop.items (name, price, stock) values ('<b>Bowl</b>', 3, 1)",
            "delete from shop.items where name = '<b>Bowl</b>'",
        )
        await expect(page.locator("#changes li.insert .values")).to_contain_text("<b>Bowl</b>")
        await expect(page.locator("#changes li.delete")).to_have_count(1)
        await page.fill("#filter", "orders PAID")
        await expect(page.locator("#changes li:visible")).to_have_count(1)
        await page.fill("#filter", "")
        await page.click(".kind.delete")
        await expect(page.locator("#changes li:visible")).to_have_count(2)


async def test_a_paused_feed_keeps_what_comes(page: Page, shop: AsyncEngine, shop_url: str) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await page.keyboard.press("Space")
        await run(shop, "update shop.items set stock = stock + 1 where id <= 3")
        await expect(page.locator("#pause")).to_have_text("Resume, 3 new")
        await expect(page.locator("#changes li")).to_have_count(0)
        await page.keyboard.press("Space")
        await expect(page.locator("#changes li")).to_have_count(3)
        await page.keyboard.press("/")
        await expect(page.locator("#filter")).to_be_focused()


async def test_a_table_without_its_triggers_names_the_fix(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    await uninstall_triggers(shop, Item)
    offered = {"shop.items": None, "shop.orders": None}
    async with running(app_of(shop_url, tables=offered)) as url, shown(page, url):
        card = page.locator("[data-table='shop.items']")
        await expect(card.locator(".trouble strong")).to_have_text("Triggers missing.")
        await expect(card.locator(".trouble code")).to_contain_text("rowsignal install")
        await expect(page.locator("#headline")).to_contain_text("shop.items needs mending")
        await expect(page.locator("body")).to_have_attribute("data-tone", "wait")


async def test_nothing_to_watch_says_how_to_begin(page: Page, database_url: str) -> None:
    async with running(app_of(database_url)) as url, shown(page, url):
        await expect(page.locator("#headline")).to_have_text("Nothing to watch yet.")
        await expect(page.locator("#begin code").first).to_contain_text("rowsignal install")
        await expect(page.locator(".columns")).to_be_hidden()


async def test_a_service_that_went_and_came_back_is_met_again(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    port = free_port()
    async with running(app_of(shop_url), port=port) as url:
        await page.goto(url)
        await is_live(page)
    await expect(page.locator("#headline")).to_have_text("The service does not answer.")
    await expect(page.locator("#reach")).not_to_have_attribute("data-status", "live")
    await run(shop, "update shop.items set stock = 77 where id = 1")
    async with running(app_of(shop_url), port=port):
        await page.evaluate("dispatchEvent(new Event('online'))")
        await expect(page.locator("#changes ins")).to_have_text("77")
        await expect(page.locator("#headline")).to_have_text("Listening to 3 tables.")


async def test_a_database_that_went_away_is_missed(
    page: Page, shop: AsyncEngine, shop_url: str, server: EmbeddedPostgres
) -> None:
    name = shop.url.database
    admin = create_async_engine(server.url, isolation_level="AUTOCOMMIT")
    async with running(app_of(shop_url)) as url:
        await page.goto(url)
        await is_live(page)
        await run(admin, f'alter database "{name}" allow_connections false')
        await run(
            admin,
            f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'",
        )
        await expect(page.locator("#headline")).to_have_text("Waiting for PostgreSQL.")
        await expect(page.locator("#vital-listener")).to_have_text("reconnecting")
        await expect(page.locator("#database")).to_contain_text(str(name))
    await admin.dispose()


async def test_two_pages_read_through_one_connection(
    context: BrowserContext, shop: AsyncEngine, shop_url: str
) -> None:
    first, second = await context.new_page(), await context.new_page()
    async with running(app_of(shop_url)) as url, shown(first, url):
        await is_live(first)
        async with shown(second, url):
            await expect(second.locator("#reach")).to_have_text("live, through another tab")
            await run(shop, "update shop.items set stock = 55 where id = 1")
            for page in (first, second):
                await expect(page.locator("#changes ins")).to_have_text("55")
            await expect(second.locator("#vital-readers")).to_have_text("1")


async def test_a_subscription_is_built_shown_and_run(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    await run(
        shop,
        "update shop.orders set status = 'shipped'",
        "update shop.orders set status = 'paid' where id in (1, 2)",
    )
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        form = page.locator("#builder")
        await form.locator("[name=table]").select_option("shop.orders")
        await form.locator("[name=column]").select_option("status")
        await form.locator("[name=content]").fill("paid")
        code = await form.locator("pre").text_content() or ""
        address = re.search(r"'(http[^']+)'", code)
        assert address
        rows = await first_rows(address[1], 2)
        assert sorted(row["id"] for row in rows) == [1, 2]
        await form.get_by_role("button", name="JavaScript").click()
        await expect(form.locator("pre")).to_contain_text('where: "status.eq.paid"')
        await form.get_by_role("button", name="Run").click()
        await expect(form.locator(".said")).to_have_text("live, 2 rows held, 2 changes")
        await run(shop, "update shop.orders set status = 'packed' where id = 1")
        await expect(form.locator(".output li").first).to_contain_text("delete")
        await form.get_by_role("button", name="Stop").click()
        await expect(form.get_by_role("button", name="Run")).to_be_visible()


async def test_a_service_with_tokens_asks_and_then_shows(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    claims = {"tables": {"*": {}}, "status": True}
    end = datetime.now(UTC) + timedelta(minutes=5)
    token = jwt.encode(
        {"sub": "ada", "aud": "rowsignal", "exp": end, "rowsignal": claims}, SECRET, "HS256"
    )
    async with running(app_of(shop_url, token_secret=SECRET)) as url:
        await page.goto(url)
        await expect(page.locator("#headline")).to_have_text("This service asks who you are.")
        await page.fill("#token", token)
        await page.get_by_role("button", name="Sign in").click()
        await is_live(page)
        await run(shop, "update shop.items set stock = 66 where id = 1")
        await expect(page.locator("#changes ins")).to_have_text("66")
        await page.reload()
        await is_live(page)


async def test_colours_follow_the_system_or_the_choice_and_stay_readable(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await page.emulate_media(color_scheme="light")
        light = await page.evaluate(background)
        assert await page.evaluate(CONTRAST) >= 4.5
        await page.emulate_media(color_scheme="dark")
        assert await page.evaluate(background) != light
        assert await page.evaluate(CONTRAST) >= 4.5
        await page.keyboard.press("t")
        assert await page.evaluate(background) == light
        await page.reload()
        assert await page.evaluate(background) == light


async def test_no_width_needs_sideways_scrolling(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(shop, "update shop.customers set name = repeat('long', 30), city = 'Öland'")
        await expect(page.locator("#changes li").first).to_be_visible()
        for width in (320, 390, 768, 1080, 1440):
            await page.set_viewport_size({"width": width, "height": 800})
            assert await page.evaluate(FITS), width


async def test_controls_have_names_and_nothing_moves_against_ones_will(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    await page.emulate_media(reduced_motion="reduce")
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        assert await page.evaluate(UNNAMED) == []
        await run(shop, "update shop.items set stock = 11 where id = 1")
        await expect(page.locator("#changes li")).to_have_count(1)
        assert await page.evaluate("document.getAnimations().length") == 0
        await page.keyboard.press("Tab")
        await expect(page.locator(".skip")).to_be_focused()
        async with asyncio.timeout(30):
            while await page.evaluate("document.activeElement.id") != "latency-chart":
                await page.keyboard.press("Tab")
        await page.keyboard.press("ArrowLeft")
        await expect(page.locator("#latency-chart .cursor")).to_have_count(1)


async def test_while_the_database_is_away_nothing_on_the_page_says_otherwise(
    page: Page, shop: AsyncEngine, shop_url: str, server: EmbeddedPostgres
) -> None:
    name = shop.url.database
    admin = create_async_engine(server.url, isolation_level="AUTOCOMMIT")
    async with running(app_of(shop_url)) as url:
        await page.goto(url)
        await is_live(page)
        await expect(page.locator(".card")).to_have_count(3)
        await run(admin, f'alter database "{name}" allow_connections false')
        ended = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
        await run(admin, ended)
        await expect(page.locator("#headline")).to_have_text("Waiting for PostgreSQL.")
        await expect(page.locator("#reach")).not_to_have_attribute("data-status", "live")
        await expect(page.locator(".trouble strong")).to_have_count(0)
        shown = await page.locator("body").inner_text()
        for lie in (
            "only hints",
            "missing",
            "rowsignal install",
            "Error",
            "sqlalchemy",
            "Listening",
        ):
            assert lie not in shown
        await run(admin, f'alter database "{name}" allow_connections true')
        await expect(page.locator("#headline")).to_have_text(
            "Listening to 3 tables.", timeout=40_000
        )
        await is_live(page)
        await run(shop, "update shop.items set stock = 44 where id = 1")
        await expect(page.locator("#changes ins").first).to_have_text("44")
    await admin.dispose()


async def test_two_hundred_tables_fit_and_can_be_searched(page: Page, database_url: str) -> None:
    engine = create_async_engine(database_url)
    names = [f"part_{number:03}" for number in range(200)]
    await run(engine, *(f"create table {it} (id int primary key, n int)" for it in names))
    await run(engine, "insert into part_199 values (1, 1)")
    await install_triggers(engine, names, log=True)
    async with running(app_of(database_url)) as url, shown(page, url):
        await expect(page.locator("#headline")).to_have_text("Listening to 200 tables.")
        await expect(page.locator(".card")).to_have_count(40)
        assert await page.evaluate("document.documentElement.scrollHeight") < 5000
        await expect(page.locator("#note-rate")).to_have_text("on 200 tables, 150 shown live")
        await run(engine, "update part_100 set n = 2", "insert into part_100 values (7, 1)")
        await expect(page.locator("#changes .what").first).to_contain_text("part_100")
        await page.fill("#find-table", "PART_19")
        await expect(page.locator(".card")).to_have_count(10)
        await page.fill("#find-table", "nothing")
        await expect(page.locator("#no-tables")).to_be_visible()
        await page.fill("#find-table", "")
        await page.click("#all-tables")
        await expect(page.locator(".card")).to_have_count(200)
    await engine.dispose()


async def test_a_filter_without_hits_says_so(page: Page, shop: AsyncEngine, shop_url: str) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await expect(page.locator("#no-changes")).to_be_visible()
        await expect(page.locator("#aside")).to_have_text(re.compile("No change was seen since"))
        await expect(page.locator(".facts").first).to_contain_text("no change since the start")
        await run(shop, "update shop.items set stock = 12 where id = 1")
        await expect(page.locator("#changes li")).to_have_count(1)
        await page.fill("#filter", "nothing like this")
        await expect(page.locator("#no-hits")).to_be_visible()
        await page.fill("#filter", "")
        await expect(page.locator("#no-hits")).to_be_hidden()


async def test_to_begin_names_the_tables_there_are_and_notices_triggers(
    page: Page, database_url: str
) -> None:
    engine = create_async_engine(database_url)
    await run(engine, 'create table "odd; name" (id int primary key, n int)')
    async with running(app_of(database_url)) as url, shown(page, url):
        command = page.locator("#begin code").first
        await expect(command).to_have_text("rowsignal install --log 'public.odd; name'")
        await install_triggers(engine, ["odd; name"], log=True)
        await expect(page.locator("#headline")).to_have_text("Listening to one table.")
        await is_live(page)
        await run(engine, 'insert into "odd; name" values (1, 1)')
        await expect(page.locator("#changes li.insert")).to_have_count(1)
    await engine.dispose()


async def test_a_token_without_the_right_is_told_so(page: Page, shop_url: str) -> None:
    end = datetime.now(UTC) + timedelta(minutes=5)
    token = jwt.encode(
        {"sub": "a", "aud": "rowsignal", "exp": end, "rowsignal": {}}, SECRET, "HS256"
    )
    async with running(app_of(shop_url, token_secret=SECRET)) as url:
        await page.goto(url)
        await page.fill("#token", token)
        await page.get_by_role("button", name="Sign in").click()
        await expect(page.locator("#headline")).to_have_text("This token may not see the status.")
        await expect(page.locator("#token")).to_be_visible()


async def test_a_page_that_is_loaded_again_knows_the_last_minute(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        await run(shop, "update shop.items set stock = 13")
        await expect(page.locator("#changes li").first).to_be_visible()
        await page.wait_for_timeout(1000)  # the newest fraction of a second comes by stream
        await page.reload()
        await is_live(page)
        status = (await page.request.get(f"{url}/v1/status")).json
        recent = (await status())["recent"]["shop.items"]
        assert sum(count for _, kind, count in recent if kind == "update") >= 1


async def test_lists_and_toggles_say_what_they_are(
    page: Page, shop: AsyncEngine, shop_url: str
) -> None:
    async with running(app_of(shop_url)) as url, shown(page, url):
        await is_live(page)
        odd = """() => [...document.querySelectorAll("[aria-pressed]")]
          .map((it) => it.getAttribute("aria-pressed"))
          .filter((it) => !["true", "false"].includes(it))"""
        assert await page.evaluate(odd) == []
        assert await page.locator("ol[role], ul[role]").count() == 0
