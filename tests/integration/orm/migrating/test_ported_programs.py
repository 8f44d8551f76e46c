"""Programs for the libraries that rowsignal replaces run after their imports were changed."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import drop_database
from support.migration_projects import Project
from support.porting import MissingFromGuideError, load, names_in, port
from support.web_server import served

PROGRAMS = Path(__file__).with_name("programs")
TOOLSETS = ("from-fastapi-toolsets.md", "fastapi_toolsets")
FAS = ("from-fastapi-async-sqlalchemy.md", "fastapi_async_sqlalchemy")
HELPERS = ("from-sqlalchemy-helpers.md", "sqlalchemy_helpers")

Load = Callable[[str, tuple[str, str]], ModuleType]

pytestmark = pytest.mark.filterwarnings(
    r"ignore:\s*on_event is deprecated", r"ignore:[\s\S]*session\.exec\("
)


@pytest.fixture
def program(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a ported program that finds the database where it looks for it."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    loaded: list[str] = []

    def load_program(name: str, library: tuple[str, str]) -> ModuleType:
        loaded.append(name)
        return load(PROGRAMS / f"{name}.py", *library)

    yield load_program
    for name in loaded:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("library", [TOOLSETS, FAS, HELPERS], ids=lambda library: library[1])
def test_guide_leads_to_names_that_exist(library: tuple[str, str]) -> None:
    names = names_in(library[0])
    assert names
    for module, name in names.values():
        exec(f"from {module} import {name}")


def test_program_with_a_name_that_a_guide_lacks_is_not_ported() -> None:
    with pytest.raises(MissingFromGuideError, match="CrudFactory"):
        port("from fastapi_toolsets.crud import CrudFactory\n", *TOOLSETS)


async def test_notes_of_toolsets(program: Load, engine: AsyncEngine) -> None:
    notes = program("toolsets_notes", TOOLSETS)
    async with served(notes.app) as client:
        assert (await client.post("/notes/first?tags=a,b")).json() == 1
        assert (await client.post("/notes/forbidden?tags=c")).status_code == 422
        assert (await client.put("/notes/1/tags/b,draft")).json() == ["b"]
        assert (await client.put("/notes/7/tags/b")).status_code == 404
        assert (await client.post("/notes/1/publish")).json() == "published"
        assert await notes.archive_all() == 1
        assert await notes.count_at_once([1, 1]) == ["archived", "archived"]
        async with notes.db.lock_tables([notes.Note], mode="EXCLUSIVE"):
            pass
    async with engine.connect() as connection:
        assert list(await connection.scalars(text("select title from notes"))) == ["first"]
        names = await connection.scalars(text("select name from tags order by name"))
        assert list(names) == ["a", "archive", "b"]


async def test_wait_of_the_notes_of_toolsets(program: Load, engine: AsyncEngine) -> None:
    notes = program("toolsets_notes", TOOLSETS)
    async with served(notes.app) as client:
        await client.post("/notes/first")
        waiting = asyncio.ensure_future(client.get("/notes/1/published"))
        while not waiting.done():
            async with engine.begin() as connection:
                await connection.execute(text("update notes set state = state || '.'"))
            await asyncio.wait([waiting], timeout=0.1)
        assert (await waiting).status_code == 200


async def test_accounts_of_toolsets(program: Load, database_url: str) -> None:
    accounts = program("toolsets_accounts", TOOLSETS)
    async with served(accounts.app) as client:
        for name in ("ann", "bob"):
            assert (await client.post(f"/accounts/{name}")).status_code == 200
        assert (await client.post("/transfers/ann/bob/30")).json() == {"ann": 70, "bob": 130}
        assert (await client.post("/transfers/ann/bob/90")).status_code == 409
        assert (await client.post("/transfers/ann/eve/1")).status_code == 404
        assert await accounts.total() == 200
    assert await accounts.check_with_its_own_helpers() == [200, 100, 0]
    name = f"{make_url(database_url).database}_archive"
    await drop_database(name, server_url=database_url)


async def test_files_of_fas(program: Load) -> None:
    files = program("fas_files", FAS)
    async with served(files.app) as client:
        assert (await client.post("/files/c.txt")).status_code == 200
        for path in ("/", "/context"):
            assert (await client.get(path)).json() == ["a.txt", "b.txt", "c.txt"]
    with pytest.raises(RuntimeError):
        await files.fetch()


async def test_orders_of_fas(program: Load) -> None:
    orders = program("fas_orders", FAS)
    assert not orders.is_initialised()
    async with served(orders.app) as client:
        assert (await client.post("/orders/Lamp")).json() == 1
        assert (await client.post("/orders/LAMP")).status_code == 409
        assert (await client.get("/orders")).text == "lamp\n"
        assert (await client.get("/concurrent")).json() == list(range(6))
        assert (await client.get("/gathered")).json() == list(range(6))
        assert (await client.get("/lent")).json() is True
        assert (await client.get("/health")).json()["capacity"] == 4
        busy = await client.get("/busy")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert busy.json()["pool"]["checked_out"] == 1


@pytest.fixture
def shelves(program: Load, tmp_path: Path) -> ModuleType:
    module = program("helpers_shelves", HELPERS)
    project = Project(tmp_path / "shelves", metadata=None)
    project.add(
        "a1",
        None,
        'op.create_table("shelves", sa.Column("id", sa.Integer, primary_key=True),'
        ' sa.Column("name", sa.Unicode, unique=True))',
    )
    migration = port(module.MIGRATION, *HELPERS)
    (project.location / "versions" / "b2.py").write_text(migration)
    module.location = str(project.location)  # type: ignore[attr-defined]
    return module


@pytest.fixture
async def settings(shelves: ModuleType, database_url: str) -> AsyncIterator[Any]:
    settings = shelves.Settings(
        sqlalchemy={"url": database_url.replace("+asyncpg", "")},
        alembic={"migrations_path": shelves.location},
    )
    manager = shelves.manager_from_config(settings)
    await manager.upgrade()
    yield settings
    await shelves.close(settings)


async def test_shelves_of_helpers(
    shelves: ModuleType, settings: Any, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await shelves.shelve(database_url, shelves.location) == [True, False, "b2"]
    transport = httpx.ASGITransport(shelves.make_app(settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://shelves") as client:
        assert (await client.post("/shelves/prose")).json() is True
        assert (await client.post("/shelves/prose")).json() is False
        assert (await client.get("/shelves")).json() == ["poetry", "prose"]
    await shelves.run_syncdb(settings)
    assert capsys.readouterr().out == "Database already up-to-date.\n"
