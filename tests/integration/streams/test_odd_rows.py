"""Rows, keys and notifications that cannot be read cost one reset at most, and no other reader."""

import asyncio
import json
from collections.abc import AsyncIterator
from decimal import Decimal

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change, Operation, Reset
from rowsignal.listener import Listener
from rowsignal.streams import ChangeStream, watch
from rowsignal.triggers import install_triggers
from support.change_log import Shop, connect

LONG = "9" * 5000


class Base(DeclarativeBase):
    pass


class Odd(Base):
    __tablename__ = "odd"
    id: Mapped[int] = mapped_column(primary_key=True)
    doc: Mapped[str | None]
    raw: Mapped[str | None]
    at: Mapped[str | None]
    mood: Mapped[str | None]


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)


TABLES = """
create type mood as enum ('calm');
create table odd (id integer primary key, doc jsonb, raw json, at timestamptz, mood mood);
create table other (id integer primary key);
"""


@pytest.fixture(params=["hints", "log", "values"])
async def writer(engine: AsyncEngine, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    writer = await connect(engine)
    await writer.execute(TABLES)
    log = request.param != "hints"
    values = {"row_values": True} if request.param == "values" else {}
    await install_triggers(engine, Odd, log=log, **values)
    await install_triggers(engine, Other, log=log)
    async with Listener(engine):
        yield writer
    await writer.close()


async def following(stream: ChangeStream) -> Change | Reset:
    async with asyncio.timeout(30):
        return await anext(stream)


async def test_values_that_json_or_python_cannot_hold_have_a_form(writer, engine, request) -> None:
    raw = None if "values" in request.node.name else r'"\ud800"'
    deep = "[" * 900 + "]" * 900
    async with watch(engine, Odd, rows=True) as changes, watch(engine, Other) as others:
        await writer.execute(
            "insert into odd values (1, $1::text::jsonb, $2::text::json, '20000-01-01', 'calm')",
            f'{{"n":{LONG}}}',
            raw,
        )
        first = await following(changes)
        assert isinstance(first, Change), first
        assert first.row["doc"] == {"n": Decimal(LONG)}
        assert first.row["raw"] == (raw and "\ud800")
        assert first.row["at"] == "20000-01-01T00:00:00+00:00"
        await writer.execute("alter type mood add value 'wild'")
        statement = "insert into odd values (2, $1::text::jsonb, null, '0044-03-15 BC', 'wild')"
        await writer.execute(statement, deep)
        second = await following(changes)
        assert json.loads(second.row["doc"]) == json.loads(deep)
        assert second.row["mood"] == "wild"
        assert second.row["at"].endswith("BC")
        await writer.execute("insert into other values (1)")
        assert (await following(others)).key == {"id": 1}


@pytest.mark.parametrize("writer", ["hints"], indirect=True)
@pytest.mark.parametrize(
    "key", ['["abc"]', "[99999999999]", "[true]", '["\\u0000"]', '["\\ud800"]', "[1, 2]", "[1.5]"]
)
async def test_a_forged_key_of_the_wrong_kind_is_ignored(writer, engine, key) -> None:
    async with watch(engine, Odd, rows=True) as changes:
        token = await token_of(writer)
        hint = f'{{"t":"{token}","s":"public","n":"odd","o":"update","x":"1","k":{key}}}'
        await writer.execute("select pg_notify('rowsignal', $1)", hint)
        await writer.execute("insert into odd values (1)")
        item = await following(changes)
        if item.key is None:  # a key of another length may stand for any rows
            assert key == "[1, 2]"
            item = await following(changes)
        assert (item.operation, item.key) == (Operation.INSERT, {"id": 1})


@pytest.mark.parametrize("writer", ["hints"], indirect=True)
async def test_a_forged_truncate_or_delete_is_not_believed(writer, engine) -> None:
    await writer.execute("insert into odd values (1)")
    async with watch(engine, Odd, rows=True) as changes:
        token = await token_of(writer)
        start = f'{{"t":"{token}","s":"public","n":"odd","x":"1"'
        await writer.execute("select pg_notify('rowsignal', $1)", start + ',"o":"truncate"}')
        assert isinstance(await following(changes), Reset)
        await writer.execute("select pg_notify('rowsignal', $1)", start + ',"o":"delete","k":[1]}')
        assert (await following(changes)).operation is Operation.UPDATE
        await writer.execute("truncate odd")
        assert (await following(changes)).operation is Operation.TRUNCATE


async def token_of(writer) -> str:
    arguments = await writer.fetchval(
        "select tgargs from pg_trigger where tgrelid = 'odd'::regclass and tgtype % 2 = 1 limit 1"
    )
    return arguments.split(b"\0")[0].decode()


@pytest.mark.parametrize("writer", ["hints"], indirect=True)
async def test_a_row_that_cannot_be_read_is_a_reset_of_its_table_and_passed_by(
    writer, engine
) -> None:
    """A function in a policy may raise for one row."""
    await writer.execute(
        """
        create function picky(id integer) returns boolean language plpgsql as $$
        begin
            if id = 2 then raise exception 'not this one'; end if;
            return true;
        end $$;
        create role "picky reader" login;
        grant usage on schema public, rowsignal to "picky reader";
        grant select on odd, other to "picky reader";
        alter table odd enable row level security;
        create policy picky on odd using (picky(id));
        """
    )
    role = {"server_settings": {"role": "picky reader"}}
    restricted = create_async_engine(engine.url, connect_args=role)
    async with (
        Listener(restricted),
        watch(restricted, Odd, rows=True) as changes,
        watch(restricted, Other) as others,
    ):
        await writer.execute("insert into odd values (1), (2), (3)")
        first, second, third = [await following(changes) for _ in range(3)]
        await writer.execute("insert into other values (1)")
        assert (await following(others)).key == {"id": 1}
    await restricted.dispose()
    await writer.execute(
        'drop policy picky on odd; drop owned by "picky reader"; drop role "picky reader"'
    )
    assert [first.key, third.key] == [{"id": 1}, {"id": 3}]
    assert isinstance(second, Reset)
    assert "not this one" in second.reason
