"""The example application of the JavaScript packages, in Chromium over a real service."""

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Page, Request, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.npm_tools import once, only_one, run, sources
from acceptance.programs import serving
from rowsignal.embedded.ports import free_port

pytest_plugins = ["acceptance.browser", "acceptance.npm_workspace"]
pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(300),  # the first one installs and builds
]


@pytest.fixture(scope="module")
def example(npm_workspace: Path) -> Path:
    """Folder of the example, its page built."""
    folder = npm_workspace / "examples" / "orders"
    code = [*sources(), *sorted(folder.glob("src/*")), folder / "index.html"]
    with only_one():
        once("example", code, "npm", "run", "build", "--workspace", "examples/orders")
    return folder


@pytest_asyncio.fixture(loop_scope="module")
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Engine on the database of the example, in the loop of the module."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@contextmanager
def serve(example: Path, engine: AsyncEngine, port: int) -> Iterator[str]:
    """Run the example's server; yield its address."""
    url = engine.url.render_as_string(hide_password=False)
    command = [sys.executable, "-m", "uvicorn", "server:app", "--port", str(port)]
    with serving(command, "Uvicorn running", cwd=example, environment={"DATABASE_URL": url}):
        yield f"http://127.0.0.1:{port}"


async def execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(text(statement))


def streams(page: Page) -> list[str]:
    """Addresses of the streams that a page asks for from now on."""
    asked: list[str] = []

    def note(request: Request) -> None:
        if "/v1/changes" in request.url:
            asked.append(request.url)

    page.on("request", note)
    return asked


async def test_the_list_stays_current_and_keeps_its_order(
    page: Page, example: Path, engine: AsyncEngine
) -> None:
    asked = streams(page)
    with serve(example, engine, free_port()) as address:
        await page.goto(address)
        lines = page.locator("tr")
        await expect(lines).to_have_text(["Order 110newPay", "Order 220newPay", "Order 330newPay"])
        await execute(engine, "update orders set status = 'shipped' where id = 1")
        await execute(engine, "insert into orders values (4, 'new', 9.90)")
        await execute(engine, "delete from orders where id = 3")
        await expect(lines).to_have_text(
            ["Order 110shippedPay", "Order 220newPay", "Order 49.90newPay"]
        )
        assert len(asked) == 1  # although strict mode mounts each component twice
        await page.close()


async def test_paying_waits_until_the_list_shows_it(
    page: Page, example: Path, engine: AsyncEngine
) -> None:
    with serve(example, engine, free_port()) as address:
        await page.goto(address)
        await page.get_by_role("button", name="Order 2").click()
        await expect(page.locator("aside")).to_have_text("Order 2 of 20 is new")
        second = page.locator("tr").nth(1)
        await page.evaluate(WATCH)
        await second.get_by_role("button", name="Pay").click()
        await expect(second).to_have_text("Order 220paidPay")
        await expect(page.locator("aside")).to_have_text("Order 2 of 20 is paid")
        await page.get_by_role("button", name="Order 3").click()
        await expect(page.locator("aside")).to_have_text("Order 3 of 30 is new")
        await execute(engine, "delete from orders where id = 3")
        await expect(page.locator("aside")).to_have_text("Order 3 is gone")
        assert await page.evaluate("texts") == ["new", "paying", "paid"]
        await page.close()


WATCH = """() => {
  const cell = document.querySelectorAll("tr")[1].cells[2];
  window.texts = [cell.textContent];
  const note = () => texts.at(-1) !== cell.textContent && texts.push(cell.textContent);
  new MutationObserver(note).observe(cell, { subtree: true, childList: true, characterData: true });
}"""


async def test_what_happens_while_the_service_is_away_is_not_missed(
    page: Page, example: Path, engine: AsyncEngine
) -> None:
    port = free_port()
    with serve(example, engine, port) as address:
        await page.goto(address)
        await expect(page.get_by_role("status")).to_have_text("3 orders, live")
    await expect(page.locator("table:not(.live)")).to_be_visible()
    await execute(engine, "update orders set status = 'paid' where id = 1")
    await execute(engine, "delete from orders where id = 2")
    with serve(example, engine, port):
        await expect(page.locator("tr")).to_have_text(["Order 110paidPay", "Order 330newPay"])
        await expect(page.get_by_role("status")).to_have_text("2 orders, live")
        await page.close()


async def test_what_a_transaction_wrote_is_shown_once_it_has_been_waited_for(
    example: Path, engine: AsyncEngine, tmp_path: Path
) -> None:
    with serve(example, engine, free_port()) as address:
        more = "insert into orders select id, 'new', 1 from generate_series(4, 100) as id"
        await execute(engine, more)
        assert follow(example, tmp_path, AWAIT, address) == ["100 awaited in full, 100 filtered"]


AWAIT = """
import { subscribe } from "@rowsignal/client";

const address = process.argv[2];
const url = `${address}/v1`;
const all = await subscribe({ tables: "public.orders", url }).ready;
const where = { id: { gt: 50 } };
const upper = await subscribe({ tables: "public.orders", url, where }).ready;
const counts = { all: 0, upper: 0 };

async function payOne(id) {
  const answer = await fetch(`${address}/orders/${id}/pay`, { method: "POST" });
  const { transaction } = await answer.json();
  const shown = async (orders, name) => {
    await orders.awaitTransaction(transaction);
    const order = orders.get({ id });
    const isRight = order ? order.status === "paid" : name === "upper" && id <= 50;
    if (!isRight) throw new Error(`${name} shows ${id} as it was`);
    counts[name] += 1;
  };
  await Promise.all([shown(all, "all"), shown(upper, "upper")]);
}

const ids = all.list.map(({ id }) => id);
const workers = Array.from({ length: 8 }, async () => {
  while (ids.length) await payOne(ids.shift());
});
await Promise.all(workers);
console.log(`${counts.all} awaited in full, ${counts.upper} filtered`);
all.close();
upper.close();
"""


def follow(example: Path, folder: Path, program: str, address: str) -> list[str]:
    """Run a program for Node where the packages are found; return the lines that it prints."""
    file = example.parent.parent / "node_modules" / f".{folder.name}.mjs"
    file.write_text(program)
    try:
        return run("node", file, address, cwd=folder).splitlines()
    finally:
        file.unlink()


async def test_in_node_a_client_and_a_collection_follow_a_real_service(
    example: Path, engine: AsyncEngine, tmp_path: Path
) -> None:
    with serve(example, engine, free_port()) as address:
        printed = follow(example, tmp_path, FOLLOW, address)
    assert printed == ["3 rows", "paid in the map", "paid in the collection", "2 paid"]


FOLLOW = """
import { subscribe } from "@rowsignal/client";
import { rowsignalCollectionOptions } from "@rowsignal/tanstack-db";
import { createCollection } from "@tanstack/db";

const address = process.argv[2];
const url = `${address}/v1`;
const pay = async (id) =>
  (await (await fetch(`${address}/orders/${id}/pay`, { method: "POST" })).json()).transaction;

const orders = await subscribe({ tables: "public.orders", url }).ready;
console.log(`${orders.rows.size} rows`);
await orders.awaitTransaction(await pay(1));
console.log(`${orders.rows.get("[1]").status} in the map`);

const collection = createCollection(rowsignalCollectionOptions({
  table: "public.orders", url, getKey: ({ id }) => id,
}));
await collection.preload();
const transaction = await pay(2);
await collection.utils.awaitTransaction(transaction);
console.log(`${collection.get(2).status} in the collection`);

await orders.awaitTransaction(transaction);
const paid = subscribe({ tables: "public.orders", url, where: { status: { eq: "paid" } } });
await paid.ready;
console.log(`${paid.list.length} paid`);
await collection.cleanup();
orders.close();
paid.close();
"""
