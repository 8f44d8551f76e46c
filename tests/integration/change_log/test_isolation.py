"""What happens to one table delays no reader of another, and a big gap costs its size, not more."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import Batch
from rowsignal.change_log import log as change_log
from rowsignal.change_log.log import PAGE
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.change_log.tail import LogTail
from rowsignal.listener import Listener
from support.change_log import Shop, ids, open_shop

MANY = 20 * PAGE
ITEM, QUIET = ("public", "item"), ("public", "quiet")


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    async with open_shop(engine) as shop, Listener(engine):
        await shop.sql.execute("create table quiet (id integer primary key)")
        await shop.capture("public.quiet")
        yield shop
        await LogTail.of(engine).aclose()


async def taken(subscription: LogSubscription, count: int) -> list[int | None]:
    """Return the keys of the next changes."""
    keys: list[int | None] = []
    async with asyncio.timeout(60):
        while len(keys) < count:
            keys += ids(await anext(subscription))
    return keys


async def test_a_reader_of_another_table_stays_with_the_tail(shop: Shop) -> None:
    tail = LogTail.of(shop.engine)
    async with tail.subscribe([ITEM]) as busy, tail.subscribe([QUIET]) as quiet:
        await shop.sql.execute(f"insert into item select g, 0 from generate_series(1, {MANY}) g")
        await shop.sql.execute("insert into quiet values (1)")
        assert await taken(quiet, 1) == [1]
        assert busy.is_behind
        assert not quiet.is_behind
        assert await taken(busy, MANY) == list(range(1, MANY + 1))
        await shop.insert(MANY + 1)
        assert await taken(busy, 1) == [MANY + 1]
        await tail.catch_up()
        await shop.insert(MANY + 2)
        assert await taken(busy, 1) == [MANY + 2]
        assert not busy.is_behind


async def test_what_is_pushed_before_a_flood_comes_first(shop: Shop) -> None:
    tail = LogTail.of(shop.engine)
    async with tail.subscribe([ITEM]) as busy:
        await shop.insert(0)
        await tail.catch_up()
        await shop.sql.execute(f"insert into item select g, 0 from generate_series(1, {MANY}) g")
        await tail.catch_up()
        assert await taken(busy, MANY + 1) == list(range(MANY + 1))


async def test_a_table_without_readers_makes_no_reader_lag(shop: Shop) -> None:
    tail = LogTail.of(shop.engine)
    async with tail.subscribe([QUIET]) as quiet:
        await shop.sql.execute(f"insert into item select g, 0 from generate_series(1, {MANY}) g")
        await shop.sql.execute("insert into quiet values (1)")
        assert await taken(quiet, 1) == [1]
        assert not quiet.is_behind


async def test_pages_of_one_window_come_from_one_reading(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await shop.log.position()
    await shop.sql.execute(f"insert into item select g, 0 from generate_series(1, {MANY}) g")
    opened: list[object] = []

    class Counted(change_log.WindowCursor):
        def __init__(self, *arguments: object) -> None:
            opened.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(change_log, "WindowCursor", Counted)
    found: list[int | None] = []
    position, is_complete = start, False
    while not is_complete:
        batch = await shop.read(position)
        found += ids(batch)
        position, is_complete = batch.position, batch.is_complete
    assert found == list(range(1, MANY + 1))
    assert len(opened) == 1
    again = await shop.read(start)
    assert ids(await shop.read(again.changes[9].position, limit=5)) == list(range(11, 16))


async def test_more_readers_than_cursors_and_cursors_that_expire_lose_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rowsignal.change_log import open_windows

    monkeypatch.setattr(open_windows, "IDLE_TIMEOUT", 0.01)
    start = await shop.log.position()
    await shop.sql.execute(f"insert into item select g, 0 from generate_series(1, {MANY}) g")

    async def read_all(pause: float) -> list[int | None]:
        found: list[int | None] = []
        position, is_complete = start, False
        while not is_complete:
            batch = await shop.log.read(position, tables=[ITEM], limit=PAGE)
            assert isinstance(batch, Batch)
            found += ids(batch)
            position, is_complete = batch.position, batch.is_complete
            await asyncio.sleep(pause)
        return found

    everything = await asyncio.gather(*(read_all(0.005 * number) for number in range(6)))
    assert all(found == list(range(1, MANY + 1)) for found in everything)
