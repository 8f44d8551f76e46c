"""Streams of tables without a log: where they begin, and what they say of gaps."""

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change, Reset
from rowsignal.dispatcher import Dispatcher
from rowsignal.dispatcher import dispatcher as dispatching
from rowsignal.listener.pacing import Pace
from rowsignal.payload import LOCK_CLASS
from rowsignal.streams import ChangeStream, watch
from rowsignal.streams import sources as stream_sources
from rowsignal.triggers import install_triggers
from support.change_log import connect
from support.shop import Base, Line, Order
from support.waits import NEVER, begin_wait

ORDERS = ("public", "orders")  # as streams name it


class OtherBase(DeclarativeBase):
    pass


class SameOrder(OtherBase):
    """The orders as a wait names them that shares the stream's table."""

    __tablename__, __table_args__ = "orders", {"schema": "public"}
    id: Mapped[int] = mapped_column(primary_key=True)
    total: Mapped[Decimal]


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Two tables with hints, without a listener."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in (1, 2)])
    await install_triggers(engine, [Order, Line])
    yield engine
    await Dispatcher.of(engine).listener.close()


@pytest.fixture
async def writer(shop: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    writer = await connect(shop)
    yield writer
    await writer.close()


@pytest.fixture
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams begin without waiting for hints."""
    monkeypatch.setattr(stream_sources, "START_TIMEOUT", 0.0)


async def pay(writer: asyncpg.Connection, key: int = 1) -> None:
    await writer.execute("update orders set total = total + 1 where id = $1", key)


async def until_in_mode(engine: AsyncEngine, mode: str) -> None:
    async with asyncio.timeout(30):
        while True:
            await asyncio.sleep(0.005)
            table = Dispatcher.of(engine).tables.get(ORDERS)
            if table is not None and table.watch.mode == mode:
                return


async def following(stream: ChangeStream) -> Change | Reset:
    async with asyncio.timeout(30):
        return await anext(stream)


async def said(stream: ChangeStream) -> str:
    """Return the reason of the reset that comes next."""
    item = await following(stream)
    assert isinstance(item, Reset)
    return item.reason


async def changed(stream: ChangeStream) -> object:
    """Return the key of the change that comes next."""
    item = await following(stream)
    assert isinstance(item, Change), item
    return (item.key or {}).get("id")


async def test_a_stream_that_starts_the_listener_begins_without_a_reset(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    async with watch(shop, Order, Line) as changes:
        await pay(writer, 1)
        await pay(writer, 2)
        assert [await changed(changes), await changed(changes)] == [1, 2]


async def test_a_second_stream_begins_without_a_reset(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    async with watch(shop, Order) as first, watch(shop, Order, Line) as second:
        await pay(writer, 1)
        assert [await changed(first), await changed(second)] == [1, 1]


async def test_a_stream_begins_when_writers_from_before_are_over(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    late = await connect(shop)
    await late.execute("begin")
    await pay(late, 1)
    stream = watch(shop, Order)
    entering = asyncio.create_task(stream.__aenter__())
    await until_in_mode(shop, "settling")
    assert not entering.done()
    await late.execute("commit")
    await late.close()
    await entering
    await pay(writer, 2)
    assert await changed(stream) == 2
    await stream.__aexit__(None, None, None)


async def test_what_a_late_writer_may_have_changed_is_one_reset(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute("begin")
    await pay(writer, 1)
    async with watch(shop, Order) as changes:
        await until_in_mode(shop, "settling")
        await writer.execute("commit")
        assert "up to here" in await said(changes)
        await pay(writer, 2)
        assert await changed(changes) == 2


@pytest.mark.usefixtures("impatience")
async def test_a_stream_says_when_it_begins_without_notifications_and_when_they_come(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    bucket = await writer.fetchval(
        "select (string_to_array(encode(tgargs, 'escape'), '\\000'))[2]::int from pg_trigger"
        " where tgname = 'rowsignal_hint' and tgrelid = 'orders'::regclass"
    )
    await writer.execute(f"select pg_advisory_lock({LOCK_CLASS}, {bucket})")
    Dispatcher.of(shop, Pace(recheck=0.1))
    async with watch(shop, Order) as changes:
        assert "do not arrive" in await said(changes)
        await pay(writer, 1)
        await writer.execute(f"select pg_advisory_unlock({LOCK_CLASS}, {bucket})")
        while "up to here" not in await said(changes):
            pass
        await pay(writer, 2)
        assert await changed(changes) == 2


async def test_a_stream_of_a_busy_table_is_notified_at_once(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=NEVER, busy_rate=20, cooldown=NEVER))
    wait = begin_wait(shop, SameOrder, 1)
    await until_in_mode(shop, "armed")
    while Dispatcher.of(shop).tables[ORDERS].watch.mode != "busy":
        await pay(writer, 2)
    async with watch(shop, Order) as changes:
        await pay(writer, 2)
        assert await changed(changes) == 2
    wait.cancel()


async def test_notifications_that_were_too_many_are_a_gap_that_is_over_at_once(
    shop: AsyncEngine, writer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watch(shop, Order) as changes:
        with monkeypatch.context() as patch:
            patch.setattr(dispatching, "INBOX_LIMIT", 0)
            await pay(writer, 1)
            assert "more notifications" in await said(changes)
            assert "up to here" in await said(changes)
        await pay(writer, 2)
        assert await changed(changes) == 2


async def test_a_stream_that_was_given_up_at_its_beginning_leaves_nothing(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute("begin")
    await pay(writer)
    entering = asyncio.create_task(watch(shop, Order).__aenter__())
    await until_in_mode(shop, "settling")
    entering.cancel()
    await asyncio.gather(entering, return_exceptions=True)
    assert not Dispatcher.of(shop).tables
    await writer.execute("rollback")
