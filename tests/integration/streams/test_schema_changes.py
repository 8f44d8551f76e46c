"""Triggers, keys and partitions that change under a stream: told with the reason, and healed."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change, Operation, Reset
from rowsignal.listener import Listener
from rowsignal.streams import ChangeStream, catalog, watch
from rowsignal.triggers import install_triggers, uninstall_triggers
from support.change_log import connect


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    v: Mapped[int | None]


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(primary_key=True)


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)


class Price(Base):
    __tablename__ = "price"
    id: Mapped[Decimal] = mapped_column(primary_key=True)
    name: Mapped[str | None]


TABLES = """
create table item (id integer primary key, v integer);
create table other (id integer primary key);
create table part (id integer primary key) partition by range (id);
create table part_low partition of part for values from (0) to (10);
create table part_high partition of part for values from (10) to (20);
create table price (id numeric primary key, name text);
"""


@pytest.fixture(params=[True, False], ids=["log", "hints"])
def is_logged(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture
async def writer(
    engine: AsyncEngine, is_logged: bool, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[asyncpg.Connection]:
    monkeypatch.setattr(catalog.TableCatalog, "interval", 0.1)
    monkeypatch.setattr(catalog, "SHARE_OF_TIME", 0.5)
    writer = await connect(engine)
    await writer.execute(TABLES)
    await install_triggers(engine, [Item, Other, Part, Price], log=is_logged)
    async with Listener(engine):
        yield writer
    await writer.close()


async def following(stream: ChangeStream) -> Change | Reset:
    async with asyncio.timeout(30):
        return await anext(stream)


async def until_reset(stream: ChangeStream, words: str) -> Reset:
    """Return the reset with these words; what comes before it is of no interest."""
    while True:
        item = await following(stream)
        if isinstance(item, Reset) and words in item.reason:
            return item


async def until_change(stream: ChangeStream, key: int) -> Change:
    while True:
        item = await following(stream)
        if isinstance(item, Change) and item.key == {"id": key}:
            return item


BREAKAGES = {
    "dropped": ("drop", "no triggers"),
    "disabled": ("alter table item disable trigger all", "missing or disabled"),
    "renamed": ("alter table item rename to item_of_before", "no table public.item"),
}


@pytest.mark.parametrize("breakage", BREAKAGES)
async def test_what_silences_a_table_is_told_and_healed_by_installing_again(
    writer, engine, is_logged, breakage
) -> None:
    statement, words = BREAKAGES[breakage]
    async with watch(engine, Item) as changes, watch(engine, Other) as others:
        if statement == "drop":
            await uninstall_triggers(engine, Item)
        else:
            await writer.execute(statement)
        await until_reset(changes, words)
        if breakage == "renamed":
            await writer.execute("alter table item_of_before rename to item")
        elif breakage == "disabled":
            await writer.execute("alter table item enable trigger all")
        await install_triggers(engine, Item, log=is_logged)
        await until_reset(changes, "told again")
        await writer.execute("insert into item values (1)")
        assert (await until_change(changes, 1)).operation is Operation.INSERT
        await writer.execute("insert into other values (7)")
        assert (await following(others)).key == {"id": 7}


async def test_a_switch_between_log_and_hints_is_told_and_followed(
    writer, engine, is_logged
) -> None:
    async with watch(engine, Item) as changes:
        await uninstall_triggers(engine, Item)
        await install_triggers(engine, Item, log=not is_logged)
        while not isinstance(await following(changes), Reset):
            pass
        await writer.execute("insert into item values (1)")
        await until_change(changes, 1)


async def test_another_key_is_told(writer, engine, is_logged) -> None:
    async with watch(engine, Item) as changes, watch(engine, Other) as others:
        await writer.execute("alter table item drop constraint item_pkey")
        await until_reset(changes, "key")
        await writer.execute("insert into item values (1)")
        await writer.execute("insert into other values (7)")
        assert (await following(others)).key == {"id": 7}


PARTITIONS = {
    "truncate": "truncate part_low",
    "drop": "drop table part_low",
    "detach": "alter table part detach partition part_low",
    "attach": "create table part_top partition of part for values from (20) to (30)",
}


@pytest.mark.parametrize("what", PARTITIONS)
async def test_what_happens_to_one_partition_does_not_empty_the_table(
    writer, engine, is_logged, what
) -> None:
    await writer.execute("insert into part values (1), (11)")
    async with watch(engine, Part) as changes:
        await writer.execute(PARTITIONS[what])
        item = await following(changes)
        if isinstance(item, Change):  # a hint of any rows
            assert (item.operation, item.key) == (Operation.UPDATE, None)
        await writer.execute("delete from part where id = 11")
        assert (await until_change(changes, 11)).operation is Operation.DELETE


async def test_equal_keys_that_are_written_differently_converge(writer, engine) -> None:
    await writer.execute("insert into price values (1.0, 'a'), (2, 'b')")
    rows = {}
    async with watch(engine, Price, snapshot=True) as changes:
        await writer.execute("update price set id = 1.00 where id = 1")
        await writer.execute("update price set name = 'c' where id = 1")
        await writer.execute("delete from price where id = 2.000")
        await writer.execute("insert into price values (9, 'end')")
        while rows.get("9", rows.get(9)) is None:
            change = await following(changes)
            assert isinstance(change, Change), change
            if change.operation is Operation.DELETE:
                rows.pop(change.key["id"], None)
            else:
                rows[change.key["id"]] = change.row
    assert {str(key): row["name"] for key, row in rows.items()} == {"1.00": "c", "9": "end"}
