"""What a listener sets on its connection, and that nothing of it outlives it."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from rowsignal.change_log.tail import LogTail
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.listener import Listener, listener
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change
from support.hint_listener import connected
from support.shop import Base, Order
from support.waits import NOTIFIED_ONLY, begin_wait, close_listener, until_mode

RUNS = 200
SETTINGS = {
    "application_name": "rowsignal listener",
    "idle_in_transaction_session_timeout": "0",
    "lock_timeout": "2s",
    "statement_timeout": "10s",
    "tcp_keepalives_count": "4",
    "tcp_keepalives_idle": "30",
    "tcp_keepalives_interval": "5",
}


async def furnish(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order).values(id=1))
    await install_triggers(engine, [Order])


async def test_every_setting_of_the_listening_connection_is_set() -> None:
    with EmbeddedPostgres(port=0) as server:
        engine = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{server.port}/postgres"
        )
        async with Listener(engine) as listening:
            wire = listening._wire
            assert wire is not None
            found = {
                name: await wire.ask("select current_setting($1)", name, timeout=5)
                for name in SETTINGS
            }
        await engine.dispose()
    assert found == SETTINGS


async def test_what_belongs_to_a_listener_goes_with_it(engine: AsyncEngine) -> None:
    await furnish(engine)
    gone: list[weakref.ref[object]] = []
    for _ in range(3):
        wait = begin_wait(engine, Order, 1)
        await until_mode(engine, "armed", "settling")
        dispatcher = Dispatcher.of(engine)
        gone += [weakref.ref(it) for it in (dispatcher, dispatcher.listener, LogTail.of(engine))]
        wait.cancel()
        await asyncio.gather(wait, return_exceptions=True)
        await dispatcher.listener.close()
        del dispatcher, wait
    await asyncio.sleep(0)
    gc.collect()
    assert [it for it in gone if it() is not None] == []


def test_event_loops_that_are_over_leave_nothing(server: EmbeddedPostgres) -> None:
    shared = create_async_engine(server.url, poolclass=NullPool)
    known: list[int] = []

    async def prepare() -> None:
        await furnish(shared)
        await close_listener(shared)

    async def abandon() -> None:
        waiting = begin_wait(shared, Order, 1)
        while not any(len(rows) for rows in Dispatcher.of(shared).rows):
            await asyncio.sleep(0)
        assert not waiting.done()

    async def tidy() -> int:
        async with connected(shared) as connection:
            await connection.execute("drop table orders, lines, customers cascade")
            await connection.execute("drop schema rowsignal cascade")
            return int(
                await connection.fetchval(
                    "select count(*) from pg_stat_activity where application_name like 'rowsignal%'"
                    " and datname = current_database()"
                )
            )

    asyncio.run(prepare())
    for _ in range(RUNS):
        asyncio.run(abandon())
        known.append(len(listener._registry))
    gc.collect()
    tasks = [it for it in gc.get_objects() if isinstance(it, Dispatcher)]
    assert max(known) <= 2
    assert len(tasks) <= 2
    asyncio.run(tidy())


async def test_six_threads_share_an_engine(engine: AsyncEngine) -> None:
    await furnish(engine)
    shared = create_async_engine(engine.url, poolclass=NullPool)
    armed = threading.Barrier(7)

    async def wait() -> int:
        Dispatcher.of(shared, NOTIFIED_ONLY)
        waits = [begin_wait(shared, Order, 1) for _ in range(5)]
        await until_mode(shared, "armed")
        await asyncio.to_thread(armed.wait, 60)
        totals = {int(order.total) for order in await asyncio.gather(*waits)}
        await close_listener(shared)
        return totals.pop()

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(6) as threads:
        runs = [loop.run_in_executor(threads, asyncio.run, wait()) for _ in range(6)]
        await asyncio.to_thread(armed.wait, 60)
        async with connected(engine) as writer:
            await writer.execute("update orders set total = 5")
        assert await asyncio.gather(*runs) == [5] * 6


async def test_a_role_without_rights_on_the_schema_reads_on_one_connection(
    engine: AsyncEngine,
) -> None:
    await furnish(engine)
    role = f"reader_{engine.url.database}"
    async with connected(engine) as owner:
        await owner.execute(f"create role {role} login; grant select on orders to {role}")
        await owner.execute("revoke usage on schema rowsignal from public")
        ours = create_async_engine(engine.url.set(username=role))
        try:
            wait = begin_wait(ours, Order, 1, interval=0.02)
            pids = set()
            for _ in range(50):
                pids |= set(await backends(owner, role))
                await asyncio.sleep(0.01)
            assert 1 <= len(pids) <= 3
            await owner.execute("update orders set total = 5")
            assert (await wait).total == 5
        finally:
            await close_listener(ours)
            await ours.dispose()
            await owner.execute(f"drop owned by {role}; drop role {role}")


async def backends(owner: asyncpg.Connection, role: str) -> list[int]:
    rows = await owner.fetch("select pid from pg_stat_activity where usename = $1", role)
    return [row["pid"] for row in rows]


async def test_waits_without_a_listener_of_their_own_end_cleanly(engine: AsyncEngine) -> None:
    await furnish(engine)
    with pytest.raises(TimeoutError):
        await wait_for_row_change(engine, Order, 1, timeout=0.05)
    await close_listener(engine)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("rowsignal")]
