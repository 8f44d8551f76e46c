"""Arming: writers notify only while a process waits, and no wait misses a change because of it."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import NotFoundError
from rowsignal.listener.pacing import Pace, Pacer
from rowsignal.payload import LOCK_CLASS
from rowsignal.triggers import install_triggers
from support import waits
from support.shop import Base, Line, Order
from support.waits import NEVER, until_mode

SECONDS = 120 if os.environ.get("ROWSIGNAL_STRESS") == "minutes" else 6


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in range(1, 9)])
    await install_triggers(engine, [Order])
    yield engine
    await Dispatcher.of(engine).listener.close()


@pytest.fixture
async def writer(server: EmbeddedPostgres, shop: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    writer = await asyncpg.connect(server.dsn_of(str(shop.url.database)))
    yield writer
    await writer.close()


def begin_wait(engine: AsyncEngine, key: int = 1, **options: Any) -> asyncio.Task[Order]:
    return waits.begin_wait(engine, Order, key, **options)


async def locks(writer: asyncpg.Connection) -> int:
    return await writer.fetchval(
        "select count(*) from pg_locks where locktype = 'advisory' and classid = $1", LOCK_CLASS
    )


async def pay(writer: asyncpg.Connection, key: int = 1) -> None:
    await writer.execute("update orders set total = total + 1 where id = $1", key)


async def test_writers_do_not_notify_without_waits(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    received: list[str] = []
    await writer.add_listener("rowsignal", lambda *arguments: received.append(arguments[3]))
    await pay(writer)
    assert await writer.fetchval("select 1") == 1
    assert received == []
    Dispatcher.of(shop, Pace(safety=NEVER, idle_timeout=0.1))
    wait = begin_wait(shop)
    await until_mode(shop, "armed")
    await pay(writer)
    await wait
    assert len(received) == 1
    async with asyncio.timeout(30):
        while await locks(writer):
            await asyncio.sleep(0.01)
    await pay(writer)
    assert await writer.fetchval("select 1") == 1
    assert len(received) == 1


async def test_a_writer_from_before_the_arming_is_settled_over(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=NEVER))
    async with writer.transaction():
        await pay(writer)  # not armed: the trigger does not notify
        wait = begin_wait(shop)
        await until_mode(shop, "settling")
    assert (await wait).total == 1


async def first_read_only(self: Pacer) -> None:
    await self._subject.read()


async def test_without_settling_the_same_change_would_be_missed(
    shop: AsyncEngine, writer: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pacer, "_drain_writers", first_read_only)
    Dispatcher.of(shop, Pace(safety=NEVER))
    async with writer.transaction():
        await pay(writer)
        wait = begin_wait(shop)
        await until_mode(shop, "armed")
    done, _ = await asyncio.wait({wait}, timeout=1)
    assert not done
    wait.cancel()
    await asyncio.gather(wait, return_exceptions=True)


async def test_a_prepared_transaction_is_settled_over() -> None:
    settings = {"max_prepared_transactions": "5"}
    with EmbeddedPostgres(settings=settings) as server:
        engine = create_async_engine(server.url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(insert(Order).values(id=1))
        await install_triggers(engine, [Order])
        Dispatcher.of(engine, Pace(safety=NEVER))
        writer = await asyncpg.connect(server.dsn)
        await writer.execute("begin")
        await pay(writer)
        await writer.execute("prepare transaction 'later'")
        wait = begin_wait(engine)
        await until_mode(engine, "settling")
        await writer.execute("commit prepared 'later'")
        assert (await wait).total == 1
        await writer.close()
        await Dispatcher.of(engine).listener.close()
        await engine.dispose()


async def test_a_busy_table_is_polled_and_armed_again_when_quiet(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=NEVER, busy_rate=20, cooldown=0.5))
    wait = begin_wait(shop)
    watch = await until_mode(shop, "armed")
    while watch.mode == "armed":
        await pay(writer, 2)
    notified = Dispatcher.of(shop).listener.state.notifications
    for _ in range(20):  # changes of other rows
        await pay(writer, 2)
    assert not wait.done()
    assert watch.mode == "busy"
    assert Dispatcher.of(shop).listener.state.notifications <= notified + 5
    await pay(writer)
    assert (await wait).total == 1
    again = begin_wait(shop)
    await until_mode(shop, "armed")
    await pay(writer)
    await again


async def test_a_squatter_on_the_lock_makes_waits_poll(
    shop: AsyncEngine, writer: asyncpg.Connection, engine: AsyncEngine
) -> None:
    bucket = await writer.fetchval(
        "select (string_to_array(encode(tgargs, 'escape'), '\\000'))[2]::int from pg_trigger"
        " where tgname = 'rowsignal_hint'"
    )
    await writer.fetchval("select pg_advisory_lock($1, $2)", LOCK_CLASS, bucket)
    Dispatcher.of(shop, Pace(recheck=0.2))
    wait = begin_wait(shop, interval=0.05)
    await until_mode(shop, "polling")
    await pay(writer)
    assert (await wait).total == 1
    await writer.fetchval("select pg_advisory_unlock($1, $2)", LOCK_CLASS, bucket)
    later = begin_wait(shop, interval=0.05)
    await until_mode(shop, "armed")
    await pay(writer)
    await later


async def test_triggers_may_come_and_go_during_a_wait(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=0.2, recheck=0.2))
    wait = begin_wait(shop, interval=0.05)
    await until_mode(shop, "armed")
    await writer.execute("drop trigger rowsignal_hint on orders")
    await until_mode(shop, "polling")
    await install_triggers(shop, [Order])
    await until_mode(shop, "armed")
    await writer.execute("alter table orders disable trigger all")
    await until_mode(shop, "polling")
    await pay(writer)
    assert (await wait).total == 1


async def test_a_writer_that_replays_as_a_replica_is_seen_by_the_safety_read(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=0.2))
    wait = begin_wait(shop)
    await until_mode(shop, "armed")
    await writer.execute("set session_replication_role = replica")
    await pay(writer)
    assert (await wait).total == 1


@pytest.mark.parametrize("statement", ["truncate orders cascade", "delete from orders"])
async def test_rows_that_a_replica_removes_are_missed_by_the_safety_read(
    shop: AsyncEngine, writer: asyncpg.Connection, statement: str
) -> None:
    Dispatcher.of(shop, Pace(safety=0.2))
    wait = begin_wait(shop)
    await until_mode(shop, "armed")
    await writer.execute("set session_replication_role = replica")
    await writer.execute(statement)
    with pytest.raises(NotFoundError):
        await wait


async def test_where_rows_are_not_counted_every_safety_read_is_made(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute(f'alter database "{shop.url.database}" set track_counts = off')
    Dispatcher.of(shop, Pace(safety=0.1))
    wait = begin_wait(shop)
    watch = await until_mode(shop, "armed")
    for _ in range(3):
        last = watch.read_at
        async with asyncio.timeout(30):
            while watch.read_at == last:
                await asyncio.sleep(0.01)
    wait.cancel()


async def test_an_idle_table_is_surveyed_and_not_read(shop: AsyncEngine) -> None:
    dispatcher = Dispatcher.of(shop, Pace(safety=0.2))
    wait = begin_wait(shop)
    watch = await until_mode(shop, "armed")
    read_at, since = watch.read_at, dispatcher.survey.taken
    async with asyncio.timeout(60):
        while dispatcher.survey.taken < since + 10:
            await asyncio.sleep(0.01)
            if watch.read_at != read_at:  # the insertion of the rows was counted only now
                read_at, since = watch.read_at, dispatcher.survey.taken
    assert not wait.done()
    wait.cancel()


async def test_forged_and_broken_notifications_do_no_harm(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=NEVER))
    wait = begin_wait(shop)
    await until_mode(shop, "armed")
    for payload in ("", "{", "[]", '{"t":1}', "x" * 7999):
        await writer.execute("select pg_notify('rowsignal', $1)", payload)
    async with asyncio.timeout(30):
        while Dispatcher.of(shop).listener.state.notifications < 5:
            await asyncio.sleep(0.01)
    assert not wait.done()
    await pay(writer)
    await wait


async def test_a_wait_for_columns_that_triggers_do_not_tell_of_polls(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await install_triggers(shop, [Order], columns=["status"])
    Dispatcher.of(shop, Pace(safety=NEVER))
    narrow = begin_wait(shop, columns=["status"])
    await until_mode(shop, "armed")
    wide = begin_wait(shop, interval=0.05)
    await until_mode(shop, "polling")
    await pay(writer)
    assert (await wide).total == 1
    assert not narrow.done()
    await writer.execute("update orders set status = 'paid'")
    assert (await narrow).status == "paid"


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 3 + 20)
async def test_no_wait_outlives_its_commit(
    shop: AsyncEngine, server: EmbeddedPostgres, writer: asyncpg.Connection
) -> None:
    """Writers sleep inside transactions, waits come and go, arming starts over all the time."""
    Dispatcher.of(shop, Pace(safety=NEVER, idle_timeout=0.0, busy_rate=1e9))
    loop = asyncio.get_running_loop()
    end = loop.time() + SECONDS
    resolved = 0

    async def write(seed: int) -> None:
        chance = random.Random(seed)
        connection = await asyncpg.connect(server.dsn_of(str(shop.url.database)))
        while loop.time() < end:
            async with connection.transaction():
                await pay(connection, chance.randint(1, 8))
                await asyncio.sleep(chance.random() * 0.3)
            await asyncio.sleep(chance.random() * 0.3)
        await connection.close()

    async def wait(seed: int) -> None:
        nonlocal resolved
        chance = random.Random(seed)
        while loop.time() < end:
            await asyncio.sleep(chance.random() * 0.4)
            key = chance.randint(1, 8)
            task = begin_wait(shop, key, timeout=None)
            while not task.done() and loop.time() < end + 0.5:
                await asyncio.wait({task}, timeout=0.1)
                await must_resolve(task, key)
            resolved += task.done() and not task.cancelled()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def must_resolve(task: asyncio.Task[Order], key: int) -> None:
        pending = [w for rows in Dispatcher.of(shop).rows for w in rows if w.primary_key == (key,)]
        baselines = [w.baseline for w in pending if w.baseline is not None and not w.future.done()]
        now = await writer_total(key)
        if any(baseline[2] != now for baseline in baselines):
            await asyncio.wait({task}, timeout=5)
            assert task.done(), f"order {key} changed to {now} and its wait still hangs"

    turn = asyncio.Lock()

    async def writer_total(key: int) -> object:
        async with turn:
            return await writer.fetchval("select total from orders where id = $1", key)

    await asyncio.gather(*(write(n) for n in range(6)), *(wait(100 + n) for n in range(3)))
    assert resolved > SECONDS


async def test_waits_on_a_logged_table_are_woken_by_its_log(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await install_triggers(shop, [Order], log=True)
    Dispatcher.of(shop, Pace(safety=NEVER))
    wait = begin_wait(shop)
    await until_mode(shop, "armed")
    await pay(writer)
    assert (await wait).total == 1
    async with writer.transaction():
        await pay(writer)
        later = begin_wait(shop, 2)
        await pay(writer, 2)
        await until_mode(shop, "settling", "armed")
    assert (await later).total == 1


async def test_a_key_in_another_order_than_the_models_is_found(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute("drop table lines")
    await writer.execute("create table lines (order_id int, no int, quantity int not null)")
    await writer.execute("alter table lines add primary key (no, order_id)")
    await writer.execute("insert into lines values (1, 2, 1), (2, 1, 1)")
    await install_triggers(shop, [Line])
    Dispatcher.of(shop, Pace(safety=NEVER))
    wait = waits.begin_wait(shop, Line, (1, 2))
    await until_mode(shop, "armed", table="lines")
    await writer.execute("update lines set quantity = 5 where order_id = 1 and no = 2")
    assert (await wait).quantity == 5


async def test_logged_tables_whose_triggers_are_disabled_are_polled(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await install_triggers(shop, [Order], log=True)
    await writer.execute("alter table orders disable trigger all")
    Dispatcher.of(shop, Pace(safety=NEVER))
    wait = begin_wait(shop, interval=0.05)
    await until_mode(shop, "polling")
    await pay(writer)
    assert (await wait).total == 1


async def test_a_row_that_was_read_without_its_key_is_woken_beside_others(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(shop, Pace(safety=NEVER))
    keyed = begin_wait(shop, 1)
    await until_mode(shop, "armed")
    await writer.execute("alter function rowsignal.key_value_v1 rename to away")
    await Dispatcher.of(shop).listener.reads.close()  # what is prepared there needs no name
    keyless = begin_wait(shop, 2, timeout=None)  # its end would be a look
    await until_mode(shop, "armed")
    await writer.execute("alter function rowsignal.away rename to key_value_v1")
    await pay(writer, 2)
    assert (await asyncio.wait_for(keyless, 10)).total == 1
    await pay(writer, 1)
    assert (await keyed).total == 1
