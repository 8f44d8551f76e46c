"""The first page of the guide to the browser client, as it stands, from another origin."""

import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from acceptance.programs import serving
from rowsignal.embedded.ports import free_port
from support import web_server
from support.doc_pages import ROOT, blocks

pytest_plugins = ["acceptance.browser", "acceptance.shops"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

GUIDE = ROOT / "docs" / "how-to" / "browser-client.md"
SERVICE, ORIGIN = "localhost:8080", "http://localhost:3000"


def first(kind: str) -> str:
    """First block of a kind on the page."""
    return next(block.text for block in blocks(GUIDE) if block.kind == kind)


@pytest_asyncio.fixture(loop_scope="module")
async def page_port(request: pytest.FixtureRequest) -> AsyncIterator[tuple[int, int]]:
    """Ports of the page, which is served, and of the service, which is not yet."""
    port = free_port()
    shown = first("html").replace(SERVICE, f"localhost:{port}")

    async def answer(_: Request) -> Response:
        return HTMLResponse(f"<!doctype html><title>a page</title>{shown}")

    async with web_server.serving(Starlette(routes=[Route("/", answer)])) as site:
        yield site.port, port


async def test_the_first_page_works_once_its_origin_is_allowed(
    page: Page, shop: AsyncEngine, page_port: tuple[int, int], tmp_path: Path
) -> None:
    own, service = page_port
    found = re.fullmatch(r"(ROWSIGNAL_CORS_ORIGINS)=(\S+) (rowsignal serve)\n", first("sh"))
    assert found
    assert found[2] == ORIGIN
    environment = {
        found[1]: found[2].replace("3000", str(own)),
        "DATABASE_URL": shop.url.render_as_string(hide_password=False),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    command = [*found[3].split(), "--port", str(service)]
    async with shop.begin() as connection:
        number = await connection.scalar(text("select min(id) from shop.orders"))
        await connection.execute(text("update shop.orders set status = 'delivered'"))
        one = text("update shop.orders set status = 'paid' where id = :id")
        await connection.execute(one, {"id": number})
    with serving(command, "startup complete|ready", cwd=tmp_path, environment=environment):
        await page.goto(f"http://localhost:{own}")
        line = page.locator("#orders:not(.stale) li")
        await expect(line).to_have_text(f"{number}: paid")
        async with shop.begin() as connection:
            await connection.execute(
                text("update shop.orders set status = 'shipped' where status = 'paid'")
            )
        await expect(line).to_have_text(f"{number}: paid → shipped")
        await page.close()
