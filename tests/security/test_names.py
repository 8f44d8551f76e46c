"""Any identifier of 1 to 63 bytes goes through install, write, read and uninstall."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, Enum, Integer, MetaData, Table
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal import install_triggers, trigger_status, uninstall_triggers
from rowsignal.identifiers import MAX_BYTES, literal, qualify, quote
from support.hint_listener import connected, listening

characters = st.one_of(
    st.sampled_from("%{}\"'\\$-/*\n\t; .?:()[]n o r"),
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]),
)
words = st.sampled_from(["%s", "%1$s", "{one}", "--", "/*", "*/", "$$", "$rowsignal$", "new_rows"])
SYSTEM_COLUMNS = {"ctid", "xmin", "xmax", "cmin", "cmax", "tableoid"}
names = st.one_of(st.text(characters, min_size=1, max_size=40), words).filter(
    lambda name: (
        len(name.encode()) <= MAX_BYTES
        and not name.lower().startswith("pg_")
        and name not in SYSTEM_COLUMNS
    )
)


@dataclass(frozen=True)
class Names:
    """The names of one table; those of its columns differ."""

    schema: str
    table: str
    type: str
    columns: tuple[str, str, str]
    labels: tuple[str, str]

    @property
    def relation(self) -> str:
        return qualify(self.table, self.schema)


def pairs(size: int) -> Any:
    return st.lists(names, min_size=size, max_size=size, unique=True).map(tuple)


tables = st.builds(Names, names, names, names, pairs(3), pairs(2))


@pytest.mark.timeout(300)
@settings(max_examples=25, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(tables, st.sampled_from(["hints", "log", "row values", "filter"]))
def test_any_name_goes_through_install_write_read_and_uninstall(
    worker_database: str, table: Names, kind: str
) -> None:
    asyncio.run(scenario(worker_database, table, kind))


async def scenario(url: str, names: Names, kind: str) -> None:
    engine = create_async_engine(url)
    try:
        await go_through(engine, names, kind)
    finally:
        await engine.dispose()


async def go_through(engine: AsyncEngine, names: Names, kind: str) -> None:
    async with connected(engine) as sql:
        key, value, other = map(quote, names.columns)
        labels = ", ".join(map(literal, names.labels))
        kind_of_value = qualify(names.type, names.schema)
        # the row type of a table takes its name, too
        renamed = names.type != names.table and f"_{names.table}" != names.type
        await sql.execute(f"drop schema if exists {quote(names.schema)} cascade")
        await sql.execute(f"create schema {quote(names.schema)}")
        try:
            if renamed:
                await sql.execute(f"create type {kind_of_value} as enum ({labels})")
            column = kind_of_value if renamed else "text"
            await sql.execute(
                f"create table {names.relation}"
                f" ({key} int primary key, {value} {column}, {other} text)"
            )
            model = Table(
                names.table,
                MetaData(),
                Column(names.columns[0], Integer, primary_key=True),
                Column(names.columns[1], Enum(*names.labels, name=names.type)),
                schema=names.schema,
            )
            given_settings: dict[str, Any] = {
                "hints": {"columns": [names.columns[1]]},
                "log": {"log": True, "columns": [names.columns[1]]},
                "row values": {"log": True, "row_values": True, "exclude": [names.columns[2]]},
                "filter": {"log": True, "filter_columns": [names.columns[1]]},
            }[kind]
            if "exclude" in given_settings:
                model.append_column(Column(names.columns[2]))
            await install_triggers(engine, model, **given_settings)
            found = await write_and_read(engine, sql, names, kind)
            # rows of one statement have no order among each other
            assert sorted(found, key=repr) == sorted(expected(names, kind), key=repr)
            (status,) = await trigger_status(engine, model, **given_settings)
            assert (status.state, status.problem) == ("installed", None)
            (done,) = await uninstall_triggers(engine, model)
            assert done.action == "removed"
        finally:
            await sql.execute(f"drop schema {quote(names.schema)} cascade")


async def write_and_read(
    engine: AsyncEngine, sql: asyncpg.Connection, names: Names, kind: str
) -> list[Any]:
    async with listening_to(engine, names) as received:
        key, value, other = map(quote, names.columns)
        first, second = map(literal, names.labels)
        await sql.execute("delete from rowsignal.change")
        for statement in (
            f"insert into {names.relation} values (1, {first}, 'x')",
            f"insert into {names.relation} values (2, {first}, 'x'), (3, {first}, 'x')",
            f"update {names.relation} set {value} = {second} where {key} = 1",
            f"update {names.relation} set {value} = {second}",
            f"update {names.relation} set {other} = 'y'",
            f"delete from {names.relation} where {key} = 1",
            f"truncate {names.relation}",
        ):
            await sql.execute(statement)
        if kind == "hints":
            return [(hint["o"][0], hint.get("k"), hint.get("c")) for hint in await received.hints()]
        rows = await sql.fetch("select * from rowsignal.change order by id")
        return [
            (row["operation"].decode(), key_of(row["key"], names), row["changed"]) for row in rows
        ]


def key_of(text: str | None, names: Names) -> list[int] | None:
    return None if text is None else [json.loads(text)[names.columns[0]]]


def listening_to(engine: AsyncEngine, names: Names) -> Any:
    return listening(engine, (names.schema, names.table))


def expected(names: Names, kind: str) -> list[Any]:
    """Return (operation, key, changed columns): a change of the third column does not count."""
    changed = [names.columns[1]]
    others = [("u", [n], [names.columns[2]]) for n in (1, 2, 3)] if kind == "filter" else []
    return [
        *(("i", [n], None) for n in (1, 2, 3)),
        *(("u", [n], changed) for n in (1, 2, 3)),
        *others,
        ("d", [1], None),
        ("t", None, None),
    ]
