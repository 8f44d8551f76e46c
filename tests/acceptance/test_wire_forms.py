"""What JSON.parse makes of each type in a browser is what the reference says."""

import dataclasses
import enum
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response
from playwright.async_api import Page
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import registry

from rowsignal.listener import Listener
from rowsignal.pytest_plugin.scratch import ScratchDatabases
from rowsignal.sse import create_sse_router
from rowsignal.triggers import install_triggers
from support.doc_pages import ROOT
from support.web_server import serving

pytest_plugins = ["acceptance.browser"]
pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = ROOT / "docs" / "reference" / "http.md"
HEADINGS = ("column", "type", "value", "`Table`", "mapped class")
CELL = re.compile(r"(?<!\\)\|")
TYPES = """
create type mood as enum ('CALM', 'WILD', 'NEWER');
create domain positive as integer check (value > 0);
create domain label as text;
create type pair as (a integer, b text);
"""
FOLLOW = """async (path) => {
  const seen = [];
  (window.seen ??= {})[path] = seen;
  const stream = new EventSource(path + "/changes/forms");
  for (const name of ["insert", "reset"])
    stream.addEventListener(name, ({ data }) => seen.push({ name, data }));
  await new Promise((resolve) =>
    stream.addEventListener("heartbeat", (event) => { if (event.lastEventId) resolve(); }));
}"""
COMPARE = r"""([path, expected]) => expected.flatMap((cell, place) => {
  const { name, data } = window.seen[path][place];
  if (name === "reset" || cell === "reset") return name === cell ? [] : [[place, name]];
  const found = JSON.stringify(JSON.parse(data).row["v" + place]);
  return found === JSON.stringify(eval(cell)) ? [] : [[place, found.slice(0, 200)]];
})"""


class Mood(enum.Enum):
    CALM = "calm"
    WILD = "wild"


@dataclasses.dataclass
class Text:
    text: str


class Label(sa.TypeDecorator[Text]):
    impl = sa.Text
    cache_ok = True

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Text | None:
        return None if value is None else Text(value)


class PgType(sa.types.UserDefinedType[str]):
    cache_ok = True


NAMES = {**vars(sa), **vars(postgresql), "Mood": Mood, "Label": Label, "PgType": PgType}


@dataclass(frozen=True)
class Form:
    """One row of the table in the reference."""

    column: str
    type_: Any
    value: str
    of_table: str
    of_class: str


def forms() -> list[Form]:
    rows = [cells(line) for line in PAGE.read_text().splitlines() if line.startswith("|")]
    start = rows.index(list(HEADINGS)) + 2
    found = []
    for row in rows[start:]:
        if len(row) != len(HEADINGS):
            break
        column, type_, value, of_table, of_class = row
        made = sa.types.to_instance(eval(type_, NAMES))
        found.append(Form(column, made, value, of_table, of_class or of_table))
    return found


def cells(line: str) -> list[str]:
    found = [it.strip().replace(r"\|", "|") for it in CELL.split(line)[1:-1]]
    return [it if it == "`Table`" else it.strip("`") for it in found]


@pytest.fixture
def database(scratch_databases: ScratchDatabases) -> Any:
    url = scratch_databases.create()
    yield url
    scratch_databases.drop(url)


@asynccontextmanager
async def serving_forms(engine: AsyncEngine, shown: Sequence[Form]) -> AsyncIterator[str]:
    """Serve a table of all types, as a table and as a mapped class, and an empty page."""
    columns = [sa.Column(f"v{place}", form.type_) for place, form in enumerate(shown)]
    key = sa.Column("id", sa.Integer, primary_key=True)
    table = sa.Table("forms", sa.MetaData(), key, *columns)
    model = type("Row", (), {})
    registry().map_imperatively(model, table)
    types = ", ".join(f"v{place} {form.column}" for place, form in enumerate(shown))
    async with engine.begin() as connection:
        for statement in (
            *TYPES.split(";\n")[:-1],
            f"create table forms (id integer primary key, {types})",
        ):
            await connection.exec_driver_sql(statement)
    await install_triggers(engine, [table], log=True)
    app = FastAPI()
    app.include_router(create_sse_router(engine, [table]), prefix="/table")
    app.include_router(create_sse_router(engine, [model]), prefix="/class")

    @app.get("/")
    async def blank() -> Response:
        return HTMLResponse("<!doctype html><title>blank</title>")

    async with Listener(engine), serving(app) as site:
        yield site.address


async def test_a_browser_gets_the_forms_of_the_reference(page: Page, database: str) -> None:
    shown = forms()
    assert len(shown) > 70
    engine = create_async_engine(database)
    async with serving_forms(engine, shown) as address:
        await page.goto(address)
        for path in ("/table", "/class"):
            await page.evaluate(FOLLOW, path)
        for place, form in enumerate(shown):
            async with engine.begin() as connection:
                await connection.exec_driver_sql(
                    f"insert into forms (id, v{place})"
                    f" values ({place}, cast({form.value} as {form.column}))"
                )
        wrong = {}
        for path, expected in (
            ("/table", [form.of_table for form in shown]),
            ("/class", [form.of_class for form in shown]),
        ):
            await page.wait_for_function(f"seen['{path}'].length >= {len(shown)}", timeout=30_000)
            mismatches = await page.evaluate(COMPARE, [path, expected])
            wrong |= {
                f"{path} {shown[place].column} {shown[place].value}": (found, expected[place])
                for place, found in mismatches
            }
        await page.goto("about:blank")
    await engine.dispose()
    assert wrong == {}
