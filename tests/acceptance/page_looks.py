"""Looks at a page as it is: axe-core's rules, texts that are for machines, and screenshots."""

import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Page

from acceptance.npm_tools import LOCK, MODULES, found_node, once, only_one

WIDTHS = (1440, 1024, 390)
HEIGHTS = {1440: 900, 1024: 800, 390: 844}
RAW = re.compile(
    r"sqlalchemy|asyncpg|Traceback|\b[A-Z]\w+(Error|Exception)\b|<class|\b0x[0-9a-f]{6}"
    r"|Errno|Connect call|\bundefined\b|\bNaN\b|\[object"
)
VIOLATIONS = """async () => (await axe.run(document, { resultTypes: ["violations"] })).violations
  .map(({ id, nodes }) => `${id}: ${nodes.map((it) => it.html.slice(0, 200)).join("  ")}`)"""
SETTLED = (
    """() => Promise.all(document.getAnimations().map((it) => it.finished.catch(() => null)))"""
)

Examine = Callable[[Page, str], Awaitable[None]]


@pytest.fixture(scope="session")
def axe() -> str:
    """Text of axe-core, which the npm workspace has as a dependency of its tests."""
    found_node()
    with only_one():
        once("install", [LOCK], "npm", "ci")
    return (MODULES / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
def examine(axe: str) -> Examine:
    """Let a page in some state be looked at, in light and dark, wide and narrow."""

    async def look(page: Page, state: str) -> None:
        text = await page.locator("body").inner_text()
        assert not RAW.search(text), text
        await page.evaluate(axe)  # as a debugger would: the page's own rules allow no such script
        for colours in ("light", "dark"):
            await page.emulate_media(color_scheme=colours, reduced_motion="reduce")
            for width in WIDTHS:
                await page.set_viewport_size({"width": width, "height": HEIGHTS[width]})
                await page.evaluate(SETTLED)
                await _photograph(page, f"{state}-{colours}-{width}")
                if width != WIDTHS[1]:
                    assert await page.evaluate(VIOLATIONS) == [], (state, colours, width)
        await page.set_viewport_size({"width": 1440, "height": 900})

    return look


async def _photograph(page: Page, name: str) -> None:
    """Save what is shown to the folder that `ROWSIGNAL_SCREENSHOTS` names, if it names one."""
    if folder := os.environ.get("ROWSIGNAL_SCREENSHOTS"):
        await page.screenshot(path=Path(folder) / f"{name}.png", full_page=not await _is_open(page))


async def _is_open(page: Page) -> bool:
    return await page.locator("dialog[open]").count() > 0
