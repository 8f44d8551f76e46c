"""The dashboard in other applications, at other paths, in Chromium."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from playwright.async_api import Page, expect
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.routing import Mount

from acceptance.dashboard_pages import is_live, run, shown
from acceptance.live_service import running
from rowsignal.demo.shop_tables import Item, Order
from rowsignal.service import create_dashboard, grant_everything
from rowsignal.sse import Grant, TableGrant

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

App = Callable[..., Awaitable[None]]


class Behind:
    """What a proxy does that shows an application under a prefix and takes that off again."""

    def __init__(self, app: Any, prefix: str) -> None:
        self.app = app
        self.state = app.state
        self._prefix = prefix

    async def __call__(self, scope: MutableMapping[str, Any], receive: App, send: App) -> None:
        if scope["type"] == "http":
            assert scope["path"].startswith(self._prefix), scope["path"]
            path = scope["path"].removeprefix(self._prefix)
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)


def session_user(request: Request) -> str:
    """Stand for what an application has anyway: a user by cookie."""
    user = request.cookies.get("session")
    if user is None:
        raise HTTPException(401, "Sign in to the shop first.")
    return user


def grant_of(user: str = Depends(session_user)) -> Grant:
    tables = {"shop.items": TableGrant(columns=frozenset({"id", "stock"}))}
    return Grant(tables=tables, principal=user, status=True)


async def works_at(page: Page, url: str, shop: AsyncEngine, stock: int) -> None:
    async with shown(page, url):
        await is_live(page)
        await run(shop, f"update shop.items set stock = {stock} where id = 1")
        await expect(page.locator("#changes ins").first).to_have_text(str(stock))
        await page.locator("#changes li .what").first.click()
        history = page.locator("#inspector section", has_text="History")
        await expect(history.locator("p, li").first).not_to_have_text("Looking it up.")
        await expect(page.locator("#inspector .code pre").first).to_contain_text(
            f'"stock": {stock}'
        )
        code = await page.locator("#inspector .code pre").last.text_content()
        assert f"{url}v1/changes/shop.items?pk=1&snapshot=true" in (code or "")
        await page.keyboard.press("Escape")


async def test_in_a_fastapi_application_with_its_own_users(page: Page, shop: AsyncEngine) -> None:
    dashboard = create_dashboard(shop, authorize=grant_of)
    site = FastAPI()
    site.mount("/ops/rowsignal", dashboard)
    service = site.state.service = dashboard.state.service
    async with running(site) as url:
        place = f"{url}/ops/rowsignal/"
        await page.goto(place)
        await expect(page.locator("#detail")).to_have_text("Sign in to the shop first.")
        await page.context.add_cookies([{"name": "session", "value": "ada", "url": url}])
        await works_at(page, place, shop, 501)
        await expect(page.locator(".card")).to_have_count(1)
        assert service.outlet.streams[0].principal == "ada"
        await service.on_demand.close()


async def test_in_a_starlette_application(page: Page, shop: AsyncEngine) -> None:
    dashboard = create_dashboard(shop, [Item, Order], authorize=grant_everything)
    site = Starlette(routes=[Mount("/a", routes=[Mount("/b", dashboard)])])
    service = site.state.service = dashboard.state.service
    async with running(site) as url:  # type: ignore[arg-type]  # served as it is
        await works_at(page, f"{url}/a/b/", shop, 502)
        await expect(page.locator(".card")).to_have_count(2)
        await service.on_demand.close()


async def test_behind_a_proxy_that_takes_a_prefix_off(page: Page, shop: AsyncEngine) -> None:
    dashboard = create_dashboard(shop, authorize=grant_everything)
    site = FastAPI()
    site.mount("/rowsignal", dashboard)
    service = site.state.service = dashboard.state.service
    async with running(Behind(site, "/proxied")) as url:  # type: ignore[arg-type]  # as above
        await works_at(page, f"{url}/proxied/rowsignal/", shop, 503)
        await service.on_demand.close()


async def test_what_authorize_refuses_is_refused_everywhere(shop: AsyncEngine) -> None:
    dashboard = create_dashboard(shop, authorize=grant_of)
    site = FastAPI()
    site.mount("/rowsignal", dashboard)
    service = site.state.service = dashboard.state.service
    paths = ["status", "history", "history/shop.items/1", "transactions/1", "timeline", "readers"]
    paths += ["doctor", "changes/shop.items", "wait/shop.items/1"]
    async with running(site) as url, httpx.AsyncClient(base_url=f"{url}/rowsignal/v1/") as client:
        for path in paths:
            answer = await client.get(path)
            assert (answer.status_code, answer.json()["detail"]) == (
                401,
                "Sign in to the shop first.",
            ), path
        client.cookies.set("session", "ada")
        assert (await client.get("history/shop.orders/1")).status_code == 404
        assert (await client.get("doctor")).status_code == 403
        moved = await client.get(f"{url}/rowsignal", follow_redirects=False)
        assert moved.status_code == 307
        assert moved.headers["location"].endswith("/rowsignal/")
        await service.on_demand.close()


async def test_what_cannot_be_mounted_is_refused_in_a_sentence(shop: AsyncEngine) -> None:
    with pytest.raises(TypeError, match="grant_everything"):
        create_dashboard(shop, authorize=None)  # type: ignore[arg-type]  # on purpose
    with pytest.raises(TypeError):
        create_dashboard(shop)  # type: ignore[call-arg]  # on purpose
