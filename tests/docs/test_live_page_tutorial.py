"""The tutorial of the live page, followed word for word in an empty folder."""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from rowsignal.embedded.ports import free_port
from support.doc_pages import ROOT, Block, blocks

pytest_plugins = ["acceptance.browser"]

PAGE = ROOT / "docs" / "tutorials" / "live-page.md"
FILE = re.compile(r"^Save this as `([\w.]+)`:$", re.MULTILINE)
SERVE = "uvicorn app:app\n"
LISTENED_TO_THE_END = 28  # curl: --max-time was reached

# done by the environment that the tests run in
PREPARED = ("python3 -m venv", "pip install", "export DATABASE_URL")


class Reader:
    """A user who follows the page in an empty folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self.port = str(free_port())
        self.folder = folder
        self.environment = {
            **os.environ,
            "DATABASE_URL": url.replace("+asyncpg", ""),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "UVICORN_PORT": self.port,
        }
        names = iter(FILE.findall(PAGE.read_text()))
        for block in blocks(PAGE):
            if block.kind in {"py", "html"}:
                (folder / next(names)).write_text(block.text)

    def do(self, commands: str) -> str:
        """Run commands of the page; return what they print."""
        wanted = [line for line in commands.splitlines() if not line.startswith(PREPARED)]
        outcome = subprocess.run(
            ["bash", "-ec", "\n".join(wanted).replace(":8000", f":{self.port}")],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert outcome.returncode in {0, LISTENED_TO_THE_END}, outcome.stdout + outcome.stderr
        return outcome.stdout

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Run the application until Ctrl-C."""
        with subprocess.Popen(
            SERVE.split(),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stderr
                said = iter(process.stderr.readline, "")
                assert any("Uvicorn running on" in line for line in said), "it did not start"
                yield
                process.send_signal(signal.SIGINT)
                _, rest = process.communicate(timeout=10)
                assert "Traceback" not in rest, rest
            finally:
                process.kill()


def sections() -> dict[str, list[Block]]:
    """Blocks of the page by the number of their section."""
    text = PAGE.read_text()
    starts = [text.count("\n", 0, it.start()) for it in re.finditer(r"^## ", text, re.MULTILINE)]
    found: dict[str, list[Block]] = {}
    for block in blocks(PAGE):
        number = sum(start < block.line for start in starts)
        found.setdefault(str(number), []).append(block)
    return found


def agrees(shown: str, printed: str) -> bool:
    """Tell whether something printed is what a page shows, whatever its dots stand for."""
    pattern = re.escape(shown).replace(re.escape("..."), ".*?")
    return re.fullmatch(pattern, printed) is not None


@pytest.fixture
def reader(tmp_path: Path, database_url: str) -> Reader:
    return Reader(tmp_path, database_url)


def check(reader: Reader, section: list[Block]) -> None:
    """Do what a section says, and see what it shows."""
    printed = ""
    for block in section:
        if block.kind == "sh" and block.text != SERVE:
            printed = reader.do(block.text)
        elif block.kind == "text":
            assert agrees(block.text, printed), f"{block}\n{printed}"


def test_the_page_can_be_followed_word_for_word(reader: Reader):
    parts = sections()
    check(reader, parts["1"] + parts["2"])
    with reader.serving():
        check(reader, parts["5"])
        check(reader, parts["7"])


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_in_a_browser_shows_what_the_tutorial_says(reader: Reader, page: Page):
    parts = sections()
    check(reader, parts["2"])
    table, events = page.locator("#orders tr"), page.locator("#events li")
    with reader.serving():
        await page.goto(f"http://127.0.0.1:{reader.port}")
        await expect(table).to_have_text(["1new", "2new", "3new"])
        await asyncio.to_thread(check, reader, parts["5"])
        await expect(table).to_have_text(["1new", "2paid", "3new"])
        await expect(events).to_have_text(["order 2: update of status"])
    await expect(page.locator("#orders.away")).to_be_visible()
    await asyncio.to_thread(check, reader, parts["6"])
    with reader.serving():
        await expect(page.locator("#orders.away")).not_to_be_attached()
        await expect(events).to_have_text(
            [f"order {number}: update of status" for number in (2, 1, 1)]
        )
        await expect(table).to_have_text(["1shipped", "2paid", "3new"])
        await page.close()
