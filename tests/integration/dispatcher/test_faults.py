"""What goes wrong in the middle of waits: no wait is lost or hangs, nothing is left behind."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from itertools import count, repeat
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.listener import Listener, Timings
from rowsignal.listener.pacing import Pace
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change
from support.pgbouncer import pgbouncer
from support.proxy import Proxy, proxied
from support.shop import Base, Order
from support.waits import until_equal

QUICK = Timings(canary=0.3, query_timeout=0.5, idle_timeout=0.2, delays=lambda: repeat(0.05))
numbers = count()


@pytest.fixture(scope="module")
def fragile() -> Iterator[EmbeddedPostgres]:
    """Provide a server that the tests of this file may mistreat."""
    with EmbeddedPostgres(port=0) as server:
        yield server


@pytest.fixture
async def database(fragile: EmbeddedPostgres) -> AsyncIterator[str]:
    name = f"faulty_{next(numbers)}"
    await execute(fragile, "postgres", f"create database {name}")
    engine = create_async_engine(fragile.url_of(name))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in range(1, 21)])
    await install_triggers(engine, [Order])
    await engine.dispose()
    yield name
    await gone(fragile, name)


async def execute(server: EmbeddedPostgres, database: str, statement: str) -> list[Any]:
    connection = await asyncpg.connect(server.dsn_of(database))
    try:
        return await connection.fetch(statement)
    finally:
        await connection.close()


async def gone(server: EmbeddedPostgres, database: str) -> None:
    """Return when no connection is left."""
    statement = f"select pid, query from pg_stat_activity where datname = '{database}'"
    await until_equal(partial(execute, server, "postgres", statement), [])


async def pay(server: EmbeddedPostgres, database: str, where: str = "true") -> None:
    await execute(server, database, f"update orders set total = total + 1 where {where}")


@asynccontextmanager
async def watching(
    url: str, pace: Pace | None = None, **options: Any
) -> AsyncIterator[AsyncEngine]:
    """Provide an engine whose listener is explicit and quick; leave neither task nor connection."""
    engine = create_async_engine(url, **options)
    async with Listener(engine, timings=QUICK):
        Dispatcher.of(engine, pace or Pace(safety=60, recheck=0.2, query_timeout=0.5))
        yield engine
    await engine.dispose()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith("rowsignal")}


def begin_waits(engine: AsyncEngine, keys: range = range(1, 21)) -> list[asyncio.Task[Order]]:
    return [
        asyncio.create_task(wait_for_row_change(engine, Order, key, interval=0.1, timeout=60))
        for key in keys
    ]


async def until(engine: AsyncEngine, *modes: str, waits: int = 20) -> None:
    """Return when the waits have had their look and the table is watched in one of the modes."""
    dispatcher = Dispatcher.of(engine)
    async with asyncio.timeout(30):
        while True:
            seen = sum(wait.baseline is not None for rows in dispatcher.rows for wait in rows)
            if seen == waits and {t.watch.mode for t in dispatcher.tables.values()} <= set(modes):
                return
            await asyncio.sleep(0.01)


async def paid(waits: list[asyncio.Task[Order]]) -> None:
    assert {order.total for order in await asyncio.gather(*waits)} == {1}


LISTENING = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where application_name = 'rowsignal listener'"
)
EVERYBODY = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where datname = current_database() and pid <> pg_backend_pid()"
)


@pytest.mark.parametrize("victims", [LISTENING, EVERYBODY], ids=["listener", "everybody"])
async def test_killed_backends(fragile: EmbeddedPostgres, database: str, victims: str) -> None:
    async with watching(fragile.url_of(database)) as engine:
        waits = begin_waits(engine)
        await until(engine, "armed")
        await execute(fragile, database, victims)
        await pay(fragile, database, "id <= 10")
        await paid(waits[:10])
        await until(engine, "armed", waits=10)
        await pay(fragile, database)
        await paid(waits[10:])


@pytest.mark.parametrize("mode", ["fast", "immediate"])
async def test_a_server_restart(fragile: EmbeddedPostgres, database: str, mode: Any) -> None:
    async with watching(fragile.url_of(database)) as engine:
        waits = begin_waits(engine)
        await until(engine, "armed")
        await asyncio.to_thread(fragile.restart, mode)
        await pay(fragile, database)
        await paid(waits)


async def test_a_change_while_the_network_is_cut(fragile: EmbeddedPostgres, database: str) -> None:
    async with (
        proxied(("127.0.0.1", fragile.port)) as proxy,
        watching(through(proxy, database)) as engine,
    ):
        waits = begin_waits(engine)
        await until(engine, "armed")
        await proxy.refuse()
        await proxy.cut()
        await pay(fragile, database)
        await proxy.start()
        await paid(waits)


async def test_a_half_open_connection_is_found_out(
    fragile: EmbeddedPostgres, database: str
) -> None:
    async with (
        proxied(("127.0.0.1", fragile.port)) as proxy,
        watching(through(proxy, database)) as engine,
    ):
        waits = begin_waits(engine)
        await until(engine, "armed")
        proxy.stall()
        await pay(fragile, database)
        async with asyncio.timeout(30):
            while Dispatcher.of(engine).listener.state.mode != "polling":
                await asyncio.sleep(0.02)
        assert not any(wait.done() for wait in waits)
        await proxy.cut()
        proxy.resume()
        await paid(waits)


def through(proxy: Proxy, database: str) -> str:
    return f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{database}"


async def test_a_transaction_pooler_degrades_to_polling_and_says_why(
    fragile: EmbeddedPostgres, database: str
) -> None:
    async with pgbouncer(fragile) as port:
        engine = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{database}",
            poolclass=NullPool,
            connect_args={
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: f"__{uuid4()}__",
            },
        )
        waits = begin_waits(engine)
        listener = Dispatcher.of(engine).listener
        await until(engine, "polling")
        async with asyncio.timeout(30):
            while not (listener.state.reason and "pooler" in listener.state.reason):
                await asyncio.sleep(0.05)
        await pay(fragile, database)
        await paid(waits)
        settings = await execute(fragile, database, "show statement_timeout")
        assert settings[0][0] == "0"
        await listener.close()
        await engine.dispose()


async def test_a_listen_url_leads_past_the_pooler(fragile: EmbeddedPostgres, database: str) -> None:
    async with pgbouncer(fragile) as port:
        engine = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{database}",
            connect_args={"statement_cache_size": 0, "prepared_statement_cache_size": 0},
        )
        async with Listener(engine, listen_url=fragile.url_of(database), timings=QUICK):
            waits = begin_waits(engine)
            await until(engine, "armed")
            await pay(fragile, database)
            await paid(waits)
        await engine.dispose()


async def test_the_first_connection_fails_loudly_and_leaves_nothing() -> None:
    engine = create_async_engine("postgresql+asyncpg://postgres@127.0.0.1:1/nowhere")
    with pytest.raises(OSError, match=r"refused|failed"):
        async with Listener(engine, timings=QUICK):
            pytest.fail("connected to nowhere")
    with pytest.raises(OSError, match=r"refused|failed"):
        await wait_for_row_change(engine, Order, 1, timeout=5)
    await Dispatcher.of(engine).listener.close()


async def test_a_locked_table_delays_only_its_own_waits(
    fragile: EmbeddedPostgres, database: str
) -> None:
    locker = await asyncpg.connect(fragile.dsn_of(database))
    async with watching(fragile.url_of(database)) as engine:
        waits = begin_waits(engine)
        await until(engine, "armed")
        async with locker.transaction():
            await locker.execute("update orders set total = total + 1")
            await locker.execute("lock table orders in access exclusive mode")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.shield(asyncio.gather(*waits)), 1.5)
        await paid(waits)
    await locker.close()


async def test_cancellation_at_every_await(fragile: EmbeddedPostgres, database: str) -> None:
    async with watching(fragile.url_of(database), pool_size=2, max_overflow=0) as engine:
        for steps in range(60):
            async with AsyncSession(engine) as session:
                wait = asyncio.create_task(
                    wait_for_row_change(session, Order, 1, interval=0.01, timeout=0.05)
                )
                for _ in range(steps):
                    await asyncio.sleep(0)
                wait.cancel()
                await asyncio.gather(wait, return_exceptions=True)
        assert not any(len(rows) for rows in Dispatcher.of(engine).rows)
        waits = begin_waits(engine)
        await until(engine, "armed", "settling", "polling")
        await pay(fragile, database)
        await paid(waits)
        assert engine.pool.status().endswith("Current Checked out connections: 0")


async def test_one_connection_listens_for_any_number_of_waits(
    fragile: EmbeddedPostgres, database: str
) -> None:
    statement = f"select count(*) from pg_stat_activity where datname = '{database}'"
    async with watching(fragile.url_of(database)) as engine:
        waits = begin_waits(engine) + begin_waits(engine)
        await until(engine, "armed", waits=40)
        await until_equal(partial(execute, fragile, "postgres", statement), [(2,)])
        await pay(fragile, database)
        await paid(waits)


def test_each_event_loop_has_its_own_listener(fragile: EmbeddedPostgres) -> None:
    async def once() -> Listener:
        engine = create_async_engine(fragile.url_of("postgres"))
        async with Listener(engine, timings=QUICK) as listener:
            assert Listener.of(engine) is listener
            assert listener.state.mode == "listening"
            return listener

    first, second = asyncio.run(once()), asyncio.run(once())
    assert first is not second
    assert (first.state.mode, second.state.mode) == ("stopped", "stopped")


def test_a_loop_that_ends_in_the_middle_leaves_no_connection(fragile: EmbeddedPostgres) -> None:
    async def abandon() -> None:
        engine = create_async_engine(fragile.url_of("postgres"))
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(insert(Order).values(id=1))
        waiting = asyncio.create_task(wait_for_row_change(engine, Order, 1))
        await until(engine, "polling", "settling", "armed", "starting", waits=1)
        assert not waiting.done()
        await engine.dispose()

    asyncio.run(abandon())

    async def count_sessions() -> int:
        rows = await execute(
            fragile,
            "postgres",
            "select pid from pg_stat_activity where datname = 'postgres'"
            " and pid <> pg_backend_pid() and backend_type = 'client backend'",
        )
        return len(rows)

    async def none_left() -> None:
        async with asyncio.timeout(30):
            while await count_sessions():
                await asyncio.sleep(0.02)

    asyncio.run(none_left())
