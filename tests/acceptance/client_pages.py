"""Pages that follow the scripted service with `client.js`."""

from typing import Any

from playwright.async_api import Page

from acceptance.scripted_service import ScriptedService

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
IS_LIVE = "sub.state.status === 'live'"
ROWS = "[...sub.rows.values()]"


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
