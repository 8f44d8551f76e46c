"""Chromium for the acceptance tests: one process a run, one fresh profile a test."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import monotonic, sleep

import pytest
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext, Page, async_playwright, expect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--remote-debugging-port=0",
)
expect.set_options(timeout=20_000)
READY = re.compile(r"DevTools listening on (ws://\S+)")


def found_chromium() -> str:
    """Path of a Chromium; skips the test without one, unless the run requires it."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    if "chromium" in os.environ.get("ROWSIGNAL_REQUIRE", ""):
        pytest.fail("Chromium is required by ROWSIGNAL_REQUIRE, and none is on PATH.")
    pytest.skip("needs Chromium on PATH (Debian: apt-get install chromium)")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address at which a Chromium of this run takes commands."""
    profile = tmp_path_factory.mktemp("chromium")
    log = profile / "stderr.txt"
    command = [found_chromium(), *ARGUMENTS, f"--user-data-dir={profile}", "about:blank"]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=stderr, start_new_session=True
        )
    try:
        yield _address(process, log)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    end = monotonic() + 15
    while not (ready := READY.search(log.read_text(errors="replace"))):
        assert process.poll() is None, log.read_text(errors="replace")
        assert monotonic() < end, "Chromium did not say where it takes commands"
        sleep(0.05)
    return ready[1]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(chromium: str) -> AsyncIterator[Browser]:
    """That Chromium, for the tests of one module: they run in the module's event loop."""
    async with async_playwright() as playwright:
        yield await playwright.chromium.connect_over_cdp(chromium)


@pytest_asyncio.fixture(loop_scope="module")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """Browser profile of one test: its tabs share storage, locks and channels."""
    context = await browser.new_context()
    context.set_default_timeout(20_000)
    yield context
    await context.close()


@pytest_asyncio.fixture(loop_scope="module")
async def page(context: BrowserContext) -> Page:
    """One tab."""
    return await context.new_page()
