"""The browser client, in Chromium: rows stay right whatever happens to the connection."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext, Page

from acceptance.scripted_service import ScriptedService, serving

pytest_plugins = ["acceptance.browser"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

SUBSCRIBE = """async (options) => {
  const { subscribe } = await import("/client.js");
  window.changes = []; window.states = []; window.resets = []; window.snapshots = 0;
  window.sub = subscribe({
    tables: "public.orders", retryDelays: [20, 200], ...options,
    onChange: (change) => {
      window.changes.push(change);
      if (options.throws) throw new Error("a mistake in the page");
    },
    onState: (state) => window.states.push({ ...state, at: Date.now() }),
    onReset: (reason) => { window.resets.push(reason); window.onResetToo?.(); },
    onSnapshot: () => { window.snapshots += 1; },
  });
}"""
SPY = """(url) => {
  window.heard = [];
  window.channel = new BroadcastChannel(`rowsignal  true ${url}/v1/changes/public.orders`);
  window.channel.onmessage = ({ data }) => {
    window.heard.push(data.kind);
    window.last = data;
    if (data.message?.type === "insert") window.message = data.message;
  };
  window.say = (kind, ahead) => {
    window.heard.length = 0;
    const { term, n } = window.last;
    window.channel.postMessage({ kind, term, n: n + ahead, message: window.message });
  };
}"""
IS_LIVE = "sub.state.status === 'live'"
ROWS = "[...sub.rows.values()]"


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[ScriptedService]:
    async with serving(ScriptedService()) as service:
        yield service


async def start(page: Page, service: ScriptedService, **options: object) -> None:
    await page.goto(service.url)
    await page.evaluate(SUBSCRIBE, options)


async def live(page: Page, service: ScriptedService, **options: object) -> None:
    await start(page, service, **options)
    await page.wait_for_function(IS_LIVE)


async def told(page: Page) -> list[tuple[str, Any]]:
    """Operation and key of each change the page was told."""
    return [
        (change["operation"], change["key"] and change["key"]["id"])
        for change in await page.evaluate("changes")
    ]


async def until(page: Page, condition: str) -> None:
    await page.wait_for_function(condition)


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


async def test_a_cut_stream_goes_on_where_it_was(page: Page, service: ScriptedService) -> None:
    await live(page, service)
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


async def test_failures_are_tried_again_at_a_growing_distance(
    page: Page, service: ScriptedService
) -> None:
    service.status = 502
    await start(page, service, retryDelays=[100, 400])
    await service.requested(5)
    service.status = 200
    await until(page, IS_LIVE)
    waits = [state for state in await page.evaluate("states") if state["status"] == "waiting"]
    for state, longest in zip(waits, (100, 200, 400, 400), strict=False):
        assert longest / 2 - 45 <= state["retryAt"] - state["at"] <= longest + 1


async def test_a_reset_takes_the_rows_anew_and_tells_the_differences(
    page: Page, service: ScriptedService
) -> None:
    for number in (1, 2, 3):
        await service.write("insert", number, status="new")
    await live(page, service)
    await page.evaluate("changes.length = 0")
    service.rows = {1: service.rows[1], 2: {"id": 2, "status": "paid"}, 4: {"id": 4, "status": "x"}}
    await service.say("reset", reason="the log was pruned")
    await until(page, "snapshots === 2")
    assert await told(page) == [("update", 2), ("insert", 4), ("delete", 3)]
    assert await page.evaluate("resets") == ["the log was pruned"]
    assert await page.evaluate("changes[0].changed") == ["status"]
    assert service.requests[-1] == {"snapshot": "true"}


async def test_a_silent_connection_is_given_up(page: Page, service: ScriptedService) -> None:
    service.interval = 0.1
    await live(page, service)
    service.stalled = True
    await service.write("insert", 1, status="new")
    await service.requested(2)
    service.stalled = False
    await until(page, "changes.length === 1")
    reasons = [state["reason"] for state in await page.evaluate("states")]
    assert any(reason and "nothing was heard" in reason for reason in reasons)


async def test_half_a_snapshot_is_never_shown(page: Page, service: ScriptedService) -> None:
    for number in range(1, 6):
        await service.write("insert", number, status="new")
    service.cut_snapshot_after = 3
    await live(page, service)
    assert await page.evaluate("sub.rows.size") == 4
    assert await told(page) == [("insert", number) for number in range(2, 6)]
    assert service.requests == [{"snapshot": "true"}, {"snapshot": "true"}]


async def test_a_farewell_says_when_to_come_back(page: Page, service: ScriptedService) -> None:
    await live(page, service, retryDelays=[60_000, 60_000])
    await service.say("bye", reason="shutdown", retry=10)
    await service.write("insert", 1, status="new")
    await until(page, "changes.length === 1")
    assert "shutdown" in [state["reason"] for state in await page.evaluate("states")]


async def test_each_connection_brings_a_ticket_of_its_own(
    page: Page, service: ScriptedService
) -> None:
    service.needs_ticket = True
    await live(page, service, token="good")
    await service.cut()
    await service.write("insert", 1, status="new")
    await until(page, "changes.length === 1")
    assert [request["ticket"] for request in service.requests] == ["ticket-0", "ticket-1"]
    assert await page.evaluate("sub.state.role") == "alone"


async def test_a_refusal_says_why_and_is_not_hammered(page: Page, service: ScriptedService) -> None:
    await start(page, service, token="bad", retryDelays=[20, 60_000])
    await until(page, "sub.state.status === 'refused'")
    assert await page.evaluate("sub.state.reason") == "the token is not good"
    assert await page.evaluate("sub.state.retryAt - Date.now() > 20000")
    assert service.requests == []


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


async def test_many_rows_at_once_are_looked_at_again(page: Page, service: ScriptedService) -> None:
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


async def test_tabs_share_one_connection_and_hand_it_on(
    context: BrowserContext, service: ScriptedService
) -> None:
    await service.write("insert", 1, status="new")
    first, second, third = [await context.new_page() for _ in range(3)]
    for tab in (first, second, third):
        await live(tab, service)
    assert (service.open, len(service.requests)) == (1, 1)
    assert await first.evaluate("sub.state.role") == "leader"
    await service.write("update", 1, status="paid")
    for tab in (first, second, third):
        await until(tab, "changes.length === 2")
    await first.close()
    await service.requested(2)
    await service.write("insert", 2, status="new")
    for tab in (second, third):
        await until(tab, "changes.length === 3")
        assert await told(tab) == [("insert", 1), ("update", 1), ("insert", 2)]
    assert service.requests[1:] == [{"after": "2"}]
    assert service.open == 1


async def test_tabs_all_take_a_new_snapshot_over(
    context: BrowserContext, service: ScriptedService
) -> None:
    service.logged = False
    await service.write("insert", 1, status="new")
    tabs = [await context.new_page() for _ in range(3)]
    for tab in tabs:
        await live(tab, service)
    await service.say("reset", reason="the log was pruned")
    service.rows[1] = {"id": 1, "status": "paid"}
    await tabs[0].close()
    for tab in tabs[1:]:
        await until(tab, "sub.rows.get('[1]').status === 'paid'")
    assert service.open == 1


async def test_a_tab_that_missed_something_asks_for_the_rows(
    context: BrowserContext, service: ScriptedService
) -> None:
    leader, follower, spy = [await context.new_page() for _ in range(3)]
    await live(leader, service)
    await live(follower, service)
    await spy.goto(service.url)
    await spy.evaluate(SPY, service.url)
    await service.write("insert", 1, status="new")
    await until(spy, "window.message && last.message?.type === 'heartbeat'")
    await spy.evaluate("say('event', 0)")
    for kind, ahead in (("event", 5), ("start", 7)):
        await spy.evaluate(f"say('{kind}', {ahead})")
        await until(spy, "heard.includes('hello') && heard.includes('state')")
    await spy.evaluate("say('election', -1)")
    await until(spy, "heard.includes('state') && !heard.includes('hello')")
    assert await told(follower) == [("insert", 1)]
    assert await follower.evaluate(ROWS) == [{"id": 1, "status": "new"}]


async def test_a_new_leader_goes_on_from_whoever_heard_most(
    context: BrowserContext, service: ScriptedService
) -> None:
    leader, follower, spy = [await context.new_page() for _ in range(3)]
    await live(leader, service)
    await live(follower, service)
    await spy.goto(service.url)
    await spy.evaluate(SPY, service.url)
    await spy.evaluate(
        """() => channel.addEventListener("message", ({ data: { kind, term, n } }) => {
          const state = { rows: null, position: "2", interval: 15, news: {} };
          if (kind === "election") channel.postMessage({ kind: "state", term, n: n + 3, state });
        })"""
    )
    await service.write("insert", 1, status="new")
    await until(follower, "changes.length === 1")
    await leader.close()
    await service.requested(2)
    assert service.requests[-1] == {"after": "2"}


async def test_a_frozen_tab_loses_the_lead_and_takes_its_place_behind(
    context: BrowserContext, service: ScriptedService
) -> None:
    service.interval = 0.2
    frozen, other = await context.new_page(), await context.new_page()
    await live(frozen, service)
    await live(other, service)
    devtools = await context.new_cdp_session(frozen)
    await devtools.send("Debugger.enable")
    await devtools.send("Debugger.pause")
    await service.write("insert", 1, status="new")
    await until(other, "sub.state.role === 'leader' && changes.length === 1")
    await devtools.send("Debugger.resume")
    await devtools.send("Debugger.disable")
    await until(frozen, "sub.state.role === 'follower' && sub.rows.size === 1")
    await service.connected(1)


async def test_a_sleeping_tab_is_not_waited_for(
    context: BrowserContext, service: ScriptedService
) -> None:
    asleep, awake = await context.new_page(), await context.new_page()
    await live(asleep, service)
    await live(awake, service)
    service.status = 503
    await service.cut()
    await until(awake, "sub.state.status === 'waiting'")
    devtools = await context.new_cdp_session(asleep)
    await devtools.send("Debugger.enable")
    await devtools.send("Debugger.pause")
    service.status = 200
    await until(awake, "sub.state.role === 'leader' && " + IS_LIVE)
    await devtools.send("Debugger.disable")
    await until(asleep, "sub.state.role === 'follower'")


async def test_without_locks_each_tab_has_its_own_connection(
    context: BrowserContext, service: ScriptedService
) -> None:
    await context.add_init_script(
        "Object.defineProperty(Navigator.prototype, 'locks', { value: undefined })"
    )
    tabs = [await context.new_page() for _ in range(2)]
    for tab in tabs:
        await live(tab, service)
    await service.write("insert", 1, status="new")
    for tab in tabs:
        await until(tab, "changes.length === 1")
    assert service.open == 2


async def test_tabs_of_different_users_stay_apart(
    context: BrowserContext, service: ScriptedService
) -> None:
    tabs = [await context.new_page() for _ in range(2)]
    for tab, user in zip(tabs, ("ada", "bela"), strict=True):
        await live(tab, service, share=user)
    assert service.open == 2


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
