"""The browser client, in Chromium: rows stay right whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page

from acceptance.client_pages import IS_LIVE, ROWS, SUBSCRIBE, live, start, told, until
from acceptance.scripted_service import ScriptedService, serving

pytest_plugins = ["acceptance.browser"]
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[ScriptedService]:
    async with serving(ScriptedService()) as service:
        yield service


async def test_the_rows_come_first_and_then_each_change(
    page: Page, service: ScriptedService
) -> None:
    await service.write("insert", 1, status="new")
    await live(page, service)
    assert await page.evaluate(ROWS) == [{"id": 1, "status": "new"}]
    await service.write("update", 1, status="paid")
    await service.write("insert", 2, status="new")
    await service.write("delete", 1)
    await until(page, "changes.length === 4")
    assert await told(page) == [("insert", 1), ("update", 1), ("insert", 2), ("delete", 1)]
    first, update, *_ = await page.evaluate("changes")
    assert (first["source"], first["position"]) == ("snapshot", None)
    assert (update["old"]["status"], update["row"]["status"]) == ("new", "paid")
    assert (update["changed"], update["source"], update["position"]) == (["status"], "stream", "2")
    assert await page.evaluate(ROWS) == [{"id": 2, "status": "new"}]
    await service.write("truncate", None)
    await until(page, "sub.rows.size === 0")


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_cut_stream_goes_on_where_it_was(
    page: Page, service: ScriptedService, transport: str
) -> None:
    await live(page, service, transport=transport)
    await service.write("insert", 1, status="new")
    await until(page, "changes.length === 1")
    service.status = 503
    await service.cut()
    for number in (2, 3, 4):
        await service.write("insert", number, status="new")
    await until(page, "sub.state.reason === 'scripted 503'")
    service.status = 200
    await until(page, "changes.length === 4 && " + IS_LIVE)
    assert await told(page) == [("insert", number) for number in (1, 2, 3, 4)]
    assert service.requests[0] == {"snapshot": "true"}
    assert service.requests[-1] == {"after": "1"}
    assert await page.evaluate("snapshots") == 1


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_failures_are_tried_again_at_a_growing_distance(
    page: Page, service: ScriptedService, transport: str
) -> None:
    service.status = 502
    await start(page, service, transport=transport, retryDelays=[100, 400])
    await service.requested(5)
    service.status = 200
    await until(page, IS_LIVE)
    waits = [state for state in await page.evaluate("states") if state["status"] == "waiting"]
    for state, longest in zip(waits, (100, 200, 400, 400), strict=False):
        assert longest / 2 - 45 <= state["retryAt"] - state["at"] <= longest + 1


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_reset_takes_the_rows_anew_and_tells_the_differences(
    page: Page, service: ScriptedService, transport: str
) -> None:
    for number in (1, 2, 3):
        await service.write("insert", number, status="new")
    await live(page, service, transport=transport)
    await page.evaluate("changes.length = 0")
    service.rows = {1: service.rows[1], 2: {"id": 2, "status": "paid"}, 4: {"id": 4, "status": "x"}}
    await service.say("reset", reason="the log was pruned")
    await until(page, "snapshots === 2")
    assert await told(page) == [("update", 2), ("insert", 4), ("delete", 3)]
    assert await page.evaluate("resets") == ["the log was pruned"]
    assert await page.evaluate("changes[0].changed") == ["status"]
    assert service.requests[-1] == {"snapshot": "true"}


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_silent_connection_is_given_up(
    page: Page, service: ScriptedService, transport: str
) -> None:
    service.interval = 0.1
    await live(page, service, transport=transport)
    service.stalled = True
    await service.write("insert", 1, status="new")
    await service.requested(2)
    service.stalled = False
    await until(page, "changes.length === 1")
    reasons = [state["reason"] for state in await page.evaluate("states")]
    assert any(reason and "nothing arrived" in reason for reason in reasons)


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_half_a_snapshot_is_never_shown(
    page: Page, service: ScriptedService, transport: str
) -> None:
    for number in range(1, 6):
        await service.write("insert", number, status="new")
    service.cut_snapshot_after = 3
    await live(page, service, transport=transport)
    assert await page.evaluate("sub.rows.size") == 4
    assert await told(page) == [("insert", number) for number in range(2, 6)]
    assert service.requests == [{"snapshot": "true"}, {"snapshot": "true"}]


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_farewell_says_when_to_come_back(
    page: Page, service: ScriptedService, transport: str
) -> None:
    await live(page, service, transport=transport, retryDelays=[60_000, 60_000])
    await service.say("bye", reason="shutdown", retry=10)
    await service.write("insert", 1, status="new")
    await until(page, "changes.length === 1")
    assert "shutdown" in [state["reason"] for state in await page.evaluate("states")]


async def test_each_connection_brings_a_ticket_of_its_own(
    page: Page, service: ScriptedService
) -> None:
    service.needs_ticket = True
    await live(page, service, token="good", transport="eventsource")
    await service.cut()
    await service.write("insert", 1, status="new")
    await until(page, "changes.length === 1")
    assert [request["ticket"] for request in service.requests] == ["ticket-0", "ticket-1"]
    assert await page.evaluate("sub.state.role") == "alone"


@pytest.mark.parametrize("transport", ["fetch", "eventsource"])
async def test_a_refusal_says_why_and_is_not_hammered(
    page: Page, service: ScriptedService, transport: str
) -> None:
    service.token = "good"
    await start(page, service, token="bad", retryDelays=[20, 60_000], transport=transport)
    await until(page, "sub.state.status === 'refused'")
    assert await page.evaluate("sub.state.reason") == "the token is not good"
    assert await page.evaluate("sub.state.retryAt - Date.now() > 20000")
    assert len(service.requests) == (1 if transport == "fetch" else 0)


async def test_a_token_goes_as_a_header_and_is_asked_for_again_when_it_is_refused(
    page: Page, service: ScriptedService
) -> None:
    service.token = "fresh"
    await page.goto(service.url)
    await page.evaluate(
        """async () => {
          const { subscribe } = await import("/client.js");
          window.asked = [];
          const token = async ({ refused }) => (asked.push(refused), refused ? "fresh" : "stale");
          window.sub = subscribe({ tables: "public.orders", retryDelays: [20, 200], token });
          await sub.ready;
        }"""
    )
    await service.cut()
    await service.write("insert", 1, status="new")
    await until(page, "sub.rows.size === 1")
    assert await page.evaluate("asked") == [False, True, False, True]
    assert await page.evaluate("sub.state.role") == "alone"
    assert [request.get("after") for request in service.requests] == [None, None, "0", "0"]


async def test_a_worker_follows_rows_too(page: Page, service: ScriptedService) -> None:
    await service.write("insert", 1, status="new")
    await page.goto(service.url)
    await page.evaluate(
        """() => {
          const code = `import { subscribe } from "${location.origin}/client.js";
            const show = (orders) => postMessage([...orders.rows.values()]);
            subscribe({ tables: "public.orders", onSnapshot: show }).on("rows", show);`;
          const url = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
          window.told = [];
          new Worker(url, { type: "module" }).onmessage = ({ data }) => (told = data);
        }"""
    )
    await until(page, "told.length === 1")
    await service.write("insert", 2, status="new")
    await until(page, "told.length === 2 && told[1].id === 2")


async def test_what_a_page_has_read_stays_as_it_was(page: Page, service: ScriptedService) -> None:
    await service.write("insert", 1, status="new")
    await live(page, service)
    await page.evaluate("window.before = sub.rows")
    assert await page.evaluate("sub.rows === before")
    await service.write("update", 1, status="paid")
    await until(page, "sub.rows.get('[1]').status === 'paid'")
    assert await page.evaluate("before.get('[1]').status") == "new"


async def test_a_page_of_another_origin_is_told_about_cors(
    page: Page, service: ScriptedService
) -> None:
    elsewhere = service.url.replace("127.0.0.1", "localhost")
    await page.goto(service.url)
    await page.evaluate(SUBSCRIBE, {"url": f"{elsewhere}/v1"})
    await until(page, "sub.state.status === 'waiting'")
    assert "CORS" in await page.evaluate("sub.state.reason")
    assert service.url in await page.evaluate("sub.state.reason")


async def test_without_a_log_a_lost_connection_reads_the_rows_again(
    page: Page, service: ScriptedService
) -> None:
    service.logged = False
    await service.write("insert", 1, status="new")
    await live(page, service)
    await service.cut()
    await service.write("update", 1, status="paid")
    await until(page, "snapshots === 2")
    assert (await told(page))[-1] == ("update", 1)
    assert service.requests[-1] == {"snapshot": "true"}


async def test_without_log_and_snapshot_a_gap_is_admitted(
    page: Page, service: ScriptedService
) -> None:
    service.logged = False
    await live(page, service, snapshot=False)
    await service.cut()
    await until(page, "resets.length === 1 && " + IS_LIVE)
    assert "no log" in (await page.evaluate("resets"))[0]


async def test_many_rows_at_once_are_compared_again(page: Page, service: ScriptedService) -> None:
    service.logged = False
    for number in (1, 2):
        await service.write("insert", number, status="new")
    await live(page, service)
    service.rows = {number: {"id": number, "status": "paid"} for number in (1, 2)}
    await service.write("update", None)
    await until(page, "snapshots === 2")
    assert (await told(page))[-2:] == [("update", 1), ("update", 2)]


async def test_a_mistake_in_a_callback_costs_no_change(
    context: BrowserContext, service: ScriptedService
) -> None:
    clumsy, other = await context.new_page(), await context.new_page()
    errors: list[str] = []
    clumsy.on("pageerror", lambda error: errors.append(str(error)))
    await live(clumsy, service, throws=True)
    await live(other, service)
    await service.write("insert", 1, status="new")
    await service.write("insert", 2, status="new")
    for tab in (clumsy, other):
        await until(tab, "changes.length === 2 && sub.rows.size === 2")
    assert len(errors) == 2


async def test_closing_ends_the_stream_and_the_callbacks(
    page: Page, service: ScriptedService
) -> None:
    await live(page, service)
    await page.evaluate("sub.close()")
    async with asyncio.timeout(30):
        await service.write("insert", 1, status="new")
        await service.connected(0)
    assert await page.evaluate("changes.length") == 0
    assert await page.evaluate("states.at(-1).status") == "closed"


async def test_closing_in_a_callback_is_the_end(page: Page, service: ScriptedService) -> None:
    await live(page, service)
    await page.evaluate("sub.close = sub.close.bind(sub); window.onResetToo = sub.close")
    await service.say("reset", reason="the log was pruned")
    await until(page, "sub.state.status === 'closed'")
    await service.write("insert", 1, status="new")
    async with asyncio.timeout(30):
        await service.connected(0)
    assert await page.evaluate("changes.length") == 0
    assert len(service.requests) == 1


async def test_a_page_that_kept_its_place_goes_on_from_there(
    page: Page, service: ScriptedService
) -> None:
    for number in (1, 2):
        await service.write("insert", number, status="new")
    await service.write("delete", 1)
    await live(page, service, after="1")
    await until(page, "changes.length === 2")
    assert await told(page) == [("insert", 2), ("delete", 1)]
    assert await page.evaluate("sub.state.role") == "alone"


async def test_addresses_say_what_was_asked_for(page: Page, service: ScriptedService) -> None:
    await page.goto(service.url)
    address = """async (options) => (await import("/client.js")).changesUrl(options)"""

    async def query(**options: object) -> str:
        return str(await page.evaluate(address, options)).removeprefix(service.url)

    assert await query(tables="public.orders") == "/v1/changes/public.orders"
    assert await query(tables="a", url="/api", pk=[[1, "x"], [2, "y"]]) == (
        "/api/changes/a?pk=%5B1%2C%22x%22%5D&pk=%5B2%2C%22y%22%5D"
    )
    assert await query(
        tables=["a", "b"], where={"a": "n.gt.1"}, operations=["insert", "update"]
    ) == ("/v1/changes?table=a&table=b&where=a%3An.gt.1&operations=insert%2Cupdate")
