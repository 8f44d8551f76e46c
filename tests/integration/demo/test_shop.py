"""The demonstration shop: it fills itself once, stays lively and bounded, and stops when asked."""

import asyncio

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.demo.shop import create_shop, run_shop
from rowsignal.demo.shop_tables import NEXT_STATUS, Base, Customer, Item, Order

TABLES = (Customer.__table__, Item.__table__, Order.__table__)
STATUS = list(Order.__table__.columns.keys()).index("status")
LADDER = [*NEXT_STATUS, "delivered", "cancelled"]
EXPECTED = {
    "orders insert",
    "orders update",
    "orders delete",
    "items update",
    "customers insert",
    "customers update",
}

Rows = dict[int, tuple[object, ...]]


async def tables(engine: AsyncEngine) -> dict[str, Rows]:
    """Rows of each table, by key."""
    async with engine.connect() as connection:
        found = {table.name: await connection.execute(select(table)) for table in TABLES}
        return {name: {row[0]: tuple(row) for row in rows} for name, rows in found.items()}


def differences(before: dict[str, Rows], after: dict[str, Rows]) -> set[str]:
    """Kinds of change that lie between two states, as `table operation`."""
    kinds = set()
    for name, old in before.items():
        new = after[name]
        kinds |= {f"{name} insert" for _ in new.keys() - old.keys()}
        kinds |= {f"{name} delete" for _ in old.keys() - new.keys()}
        kinds |= {f"{name} update" for key in new.keys() & old.keys() if new[key] != old[key]}
    return kinds


async def run_until(engine: AsyncEngine, transactions: int, *, seed: int = 2) -> int:
    """Run the shop fast until it has committed about that many transactions."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_shop(engine, rate=10_000, stop=stop, seed=seed))
    async with engine.connect() as connection:
        start = await connection.scalar(text("select pg_current_xact_id()::text::bigint"))
        await connection.commit()
        while not task.done():
            seen = await connection.scalar(
                text("select txid_snapshot_xmax(txid_current_snapshot())")
            )
            await connection.commit()
            if seen - start >= transactions:
                break
            await asyncio.sleep(0.02)
    stop.set()
    return await task


def first_checkout(engine: AsyncEngine) -> asyncio.Event:
    """Event of the next connection taken from the engine's pool."""
    taken = asyncio.Event()
    event.listen(engine.sync_engine, "checkout", lambda *_: taken.set(), once=True)
    return taken


async def test_the_shop_is_filled_once_and_the_same_each_time(engine: AsyncEngine) -> None:
    await create_shop(engine)
    filled = await tables(engine)
    await create_shop(engine)
    assert await tables(engine) == filled
    assert {name: len(rows) for name, rows in filled.items()} == {
        "customers": 18,
        "items": 12,
        "orders": 36,
    }


async def test_a_busy_day_shows_every_kind_of_change_and_stays_small(engine: AsyncEngine) -> None:
    await create_shop(engine)
    morning = await tables(engine)
    assert await run_until(engine, 300) >= 200
    evening = await tables(engine)
    assert differences(morning, evening) >= EXPECTED
    assert len(evening["customers"]) <= 60
    assert len(evening["orders"]) <= 150


async def test_statuses_only_move_forward(engine: AsyncEngine) -> None:
    await create_shop(engine)
    before = (await tables(engine))["orders"]
    await run_until(engine, 150)
    after = (await tables(engine))["orders"]
    steps = [
        (LADDER.index(before[key][STATUS]), LADDER.index(after[key][STATUS]))
        for key in before.keys() & after.keys()
    ]
    assert all(old <= new for old, new in steps)
    assert any(old < new for old, new in steps)


async def test_cancelling_leaves_no_connection_out(engine: AsyncEngine) -> None:
    await create_shop(engine)
    at_work = first_checkout(engine)
    task = asyncio.create_task(run_shop(engine, rate=10_000))
    await at_work.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]  # as above


async def test_a_cut_connection_is_got_over(engine: AsyncEngine, database_url: str) -> None:
    await create_shop(engine)
    other = create_async_engine(database_url)
    cut = text(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity "
        "where pid <> pg_backend_pid() and datname = current_database()"
    )
    stop, at_work = asyncio.Event(), first_checkout(engine)
    task = asyncio.create_task(run_shop(engine, rate=500, stop=stop))
    async with other.connect() as connection:
        await at_work.wait()
        assert await connection.scalar(cut)
        seen = await connection.scalar(text("select pg_current_xact_id()::text::bigint"))
        await connection.commit()
        newest = seen
        while newest < seen + 5 and not task.done():
            await asyncio.sleep(0.05)
            newest = await connection.scalar(
                text("select txid_snapshot_xmax(txid_current_snapshot())")
            )
            await connection.commit()
    stop.set()
    assert await task >= 4
    await other.dispose()


async def test_a_mistake_is_not_taken_for_an_absent_database(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("create schema shop"))
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("drop table shop.items cascade"))
    with pytest.raises(Exception, match=r"shop\.items"):
        await run_shop(engine, rate=10_000, seed=5)
