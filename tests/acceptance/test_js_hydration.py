"""React on a server and in Chromium: what the server rendered is taken over, and kept current."""

import json
from pathlib import Path

import pytest
from fastapi.responses import FileResponse, HTMLResponse, Response
from playwright.async_api import ConsoleMessage, Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from acceptance.live_service import running, shop_app
from acceptance.npm_tools import run

pytest_plugins = ["acceptance.browser", "acceptance.shops", "acceptance.npm_workspace"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first one installs and builds
]

COMPONENT = """
import { useRows } from "@rowsignal/react";

export function Items({ initialRows }) {
  const { rows, isReady } = useRows("shop.items", { initialRows });
  const lines = rows.map(({ id, name }) => <li key={id}>{name}</li>);
  return <ul className={isReady ? "live" : "rendered"}>{lines}</ul>;
}
"""
ON_SERVER = """
import { renderToString } from "react-dom/server";
import { Items } from "./items.jsx";
console.log(renderToString(<Items initialRows={JSON.parse(process.argv[2])} />));
"""
IN_BROWSER = """
import { hydrateRoot } from "react-dom/client";
import { Items } from "./items.jsx";
const rows = JSON.parse(document.getElementById("rows").textContent);
hydrateRoot(document.getElementById("root"), <Items initialRows={rows} />);
"""
DOCUMENT = """<!doctype html><title>items</title><div id="root">{html}</div>
<script id="rows" type="application/json">{rows}</script>
<script type="module" src="/entry.js"></script>"""


@pytest.fixture(scope="module")
def programs(npm_workspace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the two programs, `server.mjs` and `entry.js`."""
    folder = npm_workspace / "node_modules" / ".hydration"  # where packages are found
    folder.mkdir(exist_ok=True)
    texts = {"items": COMPONENT, "server": ON_SERVER, "entry": IN_BROWSER}
    for name, source in texts.items():
        (folder / f"{name}.jsx").write_text(source)
    out = tmp_path_factory.mktemp("programs")
    bundle = ["npx", "esbuild", "--bundle", "--jsx=automatic", "--log-level=error"]
    run(*bundle, folder / "server.jsx", "--platform=node", f"--outfile={out / 'server.cjs'}")
    run(*bundle, folder / "entry.jsx", "--format=esm", f"--outfile={out / 'entry.js'}")
    return out


async def test_rows_that_a_server_rendered_are_taken_over_and_kept_current(
    page: Page, shop: AsyncEngine, programs: Path
) -> None:
    async with shop.connect() as connection:
        found = await connection.execute(text("select id, name from shop.items order by id"))
        rows = json.dumps([dict(row) for row in found.mappings()])
    html = run("node", programs / "server.cjs", rows).strip()
    assert html.startswith('<ul class="rendered"><li>')
    app = shop_app(shop)

    @app.get("/page")
    async def document() -> Response:
        return HTMLResponse(DOCUMENT.format(html=html, rows=rows))

    @app.get("/entry.js")
    async def entry() -> Response:
        return FileResponse(programs / "entry.js", media_type="text/javascript")

    said: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and "favicon" not in message.location["url"]:
            said.append(message.text)

    page.on("console", note)
    async with running(app) as service:
        await page.goto(f"{service}/page")
        await expect(page.locator("ul.live li")).to_have_count(len(json.loads(rows)))
        async with shop.begin() as connection:
            await connection.execute(text("update shop.items set name = 'a new name' where id = 1"))
        await expect(page.get_by_text("a new name")).to_be_visible()
        await page.close()
    assert said == []
