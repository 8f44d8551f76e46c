"""The browser client in several tabs, which share a connection and lose one another."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from playwright.async_api import BrowserContext

from acceptance.client_pages import IS_LIVE, ROWS, live, told, until
from acceptance.scripted_service import ScriptedService, serving

pytest_plugins = ["acceptance.browser"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

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


@pytest_asyncio.fixture(loop_scope="module")
async def service() -> AsyncIterator[ScriptedService]:
    async with serving(ScriptedService()) as service:
        yield service


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
    await service.connected(1)


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
    await service.connected(1)  # the server hears of a closed tab some time later


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


async def test_a_new_leader_goes_on_from_the_newest_position(
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
