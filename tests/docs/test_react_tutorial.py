"""The tutorial of the live list in React, followed word for word in an empty folder."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.async_api import Page, expect
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from acceptance.npm_tools import run
from acceptance.programs import serving
from rowsignal.embedded.ports import free_port
from support.doc_pages import ROOT, Block, blocks

pytest_plugins = ["acceptance.browser", "acceptance.npm_workspace"]
pytestmark = pytest.mark.timeout(300)  # the first one installs and builds

PAGE = ROOT / "docs" / "tutorials" / "react.md"
FILE = re.compile(r"Save this as\s+`([\w.]+)`:$", re.MULTILINE)
FILES = {"html", "jsx", "js"}
WORKSPACE = "../rowsignal/clients/js"
SERVE, DEVELOP = "rowsignal serve", "npx vite"
# done by the environment that the tests run in: the fixture has run the second line's commands
PREPARED = ("pip install", "export ", "npm ci", "npm run pack")
SERVICE_PORT, PAGE_PORT = "8080", "5173"
MOST_LINES = 10


class Reader:
    """A reader of the page, in a folder of their own."""

    def __init__(self, folder: Path, url: str, workspace: Path) -> None:
        self.folder = folder
        self.url = url
        self.workspace = workspace
        self.ports = {SERVICE_PORT: str(free_port()), PAGE_PORT: str(free_port())}
        self.sections = sections()
        self._names = iter(FILE.findall(PAGE.read_text()))

    @property
    def page(self) -> str:
        """Address at which the page says that it can be seen."""
        return f"http://localhost:{self.ports[PAGE_PORT]}"

    async def follow(self, number: int) -> None:
        """Do what a section says, but for the programs that are left running."""
        for block in self.sections[number]:
            if block.kind == "sql":
                await self._write_rows(block.text)
            elif block.kind == "sh":
                self._run(block.text)
            elif block.kind in FILES:
                (self.folder / next(self._names)).write_text(self._mine(block.text))

    async def _write_rows(self, statements: str) -> None:
        engine = create_async_engine(self.url)
        async with engine.begin() as connection:
            for statement in statements.split(";\n"):
                await connection.execute(text(statement))
        await engine.dispose()

    def _run(self, commands: str) -> None:
        for line in commands.splitlines():
            if not line.startswith((SERVE, DEVELOP, *PREPARED)):
                run("bash", "-ec", self._mine(line), cwd=self.folder, **self._environment())

    def _mine(self, words: str) -> str:
        """Put this test's ports and folders in the place of the page's."""
        for shown, port in self.ports.items():
            words = words.replace(f":{shown}", f":{port}")
        return words.replace(WORKSPACE, str(self.workspace))

    def _environment(self) -> dict[str, str]:
        return {
            "DATABASE_URL": self.url.replace("+asyncpg", ""),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "npm_config_prefer_offline": "true",
        }

    @contextmanager
    def service(self, **settings: str) -> Iterator[None]:
        """Run the service until Ctrl-C."""
        command = [str(Path(sys.executable).with_name("rowsignal")), *SERVE.split()[1:]]
        environment = {**self._environment(), **settings}
        command += ["--port", self.ports[SERVICE_PORT]]
        with serving(command, "startup complete|ready", cwd=self.folder, environment=environment):
            yield

    @contextmanager
    def develop(self) -> Iterator[None]:
        """Run Vite until Ctrl-C."""
        command = [*DEVELOP.split(), "--port", self.ports[PAGE_PORT], "--strictPort"]
        with serving(command, "Local:", cwd=self.folder):
            yield

    def setting(self, name: str) -> dict[str, str]:
        """What the page exports under a name."""
        found = re.search(rf"^export {name}=(.+)$", PAGE.read_text(), re.MULTILINE)
        assert found, name
        return {name: self._mine(found[1])}


def sections() -> dict[int, list[Block]]:
    """Blocks of the page by the number of their section."""
    words = PAGE.read_text()
    starts = [words.count("\n", 0, it.start()) for it in re.finditer(r"^## ", words, re.MULTILINE)]
    found: dict[int, list[Block]] = {}
    for block in blocks(PAGE):
        found.setdefault(sum(start < block.line for start in starts), []).append(block)
    return found


@pytest.fixture
def reader(tmp_path: Path, database_url: str, npm_workspace: Path) -> Reader:
    return Reader(tmp_path, database_url, npm_workspace)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_can_be_followed_word_for_word(reader: Reader, page: Page) -> None:
    lines = page.locator("li")
    for number in (1, 2, 3):
        await reader.follow(number)
    with reader.develop():
        with reader.service():
            await page.goto(reader.page)
            await expect(lines).to_have_text(["1: new", "2: new", "3: new"])
            await reader.follow(4)
            await expect(lines).to_have_text(["1: new", "2: paid", "3: new", "4: new"])
        await expect(page.locator("ul:not(.live)")).to_be_visible()
        await reader.follow(5)
        with reader.service():
            await expect(page.locator("ul.live")).to_be_visible()
            await expect(lines).to_have_text(["2: shipped", "3: new", "4: new"])
        await page.close()


@pytest.mark.asyncio(loop_scope="module")
async def test_without_the_proxy_the_service_allows_the_origin(reader: Reader, page: Page) -> None:
    for number in (1, 2, 3, 4, 6):
        await reader.follow(number)
    with reader.develop(), reader.service(**reader.setting("ROWSIGNAL_CORS_ORIGINS")):
        await page.goto(reader.page)
        await expect(page.locator("h1")).to_have_text("3 open")
        await expect(page.locator("p")).to_have_text("2 is paid")
        await page.close()


def test_the_list_takes_ten_lines() -> None:
    (shown,) = [block for block in sections()[3] if block.kind == "jsx"]
    written = [line for line in shown.text.splitlines() if line]
    assert len(written) <= MOST_LINES
