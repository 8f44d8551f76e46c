"""Outages end by themselves: restarts, lost connections, altered and renamed tables."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import count, repeat

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.sql.schema import ForeignKey

from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import PoolerError, WaitTimeoutError
from rowsignal.listener import Listener, Timings
from rowsignal.listener.pacing import Pace
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change
from support.hint_listener import connected
from support.pgbouncer import pgbouncer, settings_in_pool
from support.proxy import proxied
from support.waits import READ_OFTEN, begin_wait, close_listener, until_mode

QUICK = Timings(canary=0.3, query_timeout=1.0, idle_timeout=0.2, delays=lambda: repeat(0.05))
MANY = 60
numbers = count()


class Base(DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owners"

    id: Mapped[int] = mapped_column(primary_key=True)


class Parcel(Base):
    """Its objects take a query of their own: one attribute is loaded with them."""

    __tablename__ = "parcels"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[int] = mapped_column(default=0)
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("owners.id"))
    owner: Mapped[Owner | None] = relationship(lazy="joined")


@pytest.fixture(scope="module")
def fragile() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(port=0) as server:
        yield server


@pytest.fixture
async def database(fragile: EmbeddedPostgres) -> str:
    name = f"outage_{next(numbers)}"
    main = await asyncpg.connect(fragile.dsn_of("postgres"))
    await main.execute(f"create database {name}")
    await main.close()
    engine = create_async_engine(fragile.url_of(name))
    await furnish(engine)
    await engine.dispose()
    return name


async def furnish(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Parcel), [{"id": n} for n in range(1, MANY + 1)])
    await install_triggers(engine, Base)


@pytest.fixture
async def writer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    await furnish(engine)
    Dispatcher.of(engine, READ_OFTEN)
    async with connected(engine) as writer:
        yield writer
    await close_listener(engine)


async def test_waits_that_are_being_answered_while_the_server_restarts_go_on(
    fragile: EmbeddedPostgres, database: str
) -> None:
    engine = create_async_engine(fragile.url_of(database))
    async with Listener(engine, timings=QUICK):
        Dispatcher.of(engine, Pace(safety=60, recheck=0.2, query_timeout=1.0))
        waits = [begin_wait(engine, Parcel, n, interval=0.1) for n in range(1, MANY + 1)]
        await until_mode(engine, "armed", table="parcels")
        writer = await asyncpg.connect(fragile.dsn_of(database))
        await writer.execute("update parcels set place = 1")
        await asyncio.to_thread(fragile.restart, "immediate")
        assert {parcel.place for parcel in await asyncio.gather(*waits)} == {1}
        writer.terminate()
    await engine.dispose()


async def test_a_wait_begun_while_the_server_is_away_goes_on(
    fragile: EmbeddedPostgres, database: str
) -> None:
    async with proxied(("127.0.0.1", fragile.port)) as proxy:
        engine = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{database}"
        )
        async with Listener(engine, timings=QUICK):
            first = begin_wait(engine, Parcel, 1, interval=0.1)
            await until_mode(engine, "armed", table="parcels")
            await proxy.refuse()
            await proxy.cut()
            second = begin_wait(engine, Parcel, 2, interval=0.1)
            with pytest.raises(WaitTimeoutError, match=r"could not be read in 0.3 s: "):
                await wait_for_row_change(engine, Parcel, 3, timeout=0.3)
            assert not second.done()
            await proxy.start()
            await until_mode(engine, "armed", table="parcels")
            writer = await asyncpg.connect(fragile.dsn_of(database))
            await writer.execute("update parcels set place = 1")
            await writer.close()
            assert {one.place for one in await asyncio.gather(first, second)} == {1}
        await engine.dispose()


async def test_new_waits_do_not_make_attempts_to_connect_of_their_own(
    fragile: EmbeddedPostgres, database: str
) -> None:
    attempts = 0

    async def refuse(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal attempts
        attempts += 1
        writer.transport.abort()

    async with proxied(("127.0.0.1", fragile.port)) as proxy:
        engine = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{database}"
        )
        async with Listener(engine):
            first = begin_wait(engine, Parcel, 1, interval=0.1)
            await until_mode(engine, "armed", table="parcels")
            await proxy.refuse()
            await proxy.cut()
            closed = await asyncio.start_server(refuse, "127.0.0.1", proxy.port)
            waits = []
            for number in range(2, 42):  # twenty a second
                waits.append(begin_wait(engine, Parcel, number, interval=0.1))
                await asyncio.sleep(0.05)
            closed.close()
            assert 2 <= attempts <= 40, "bounded by two growing delays, not by waits"
            await proxy.start()
            await until_mode(engine, "armed", table="parcels")
            for wait in (first, *waits):
                wait.cancel()
            await asyncio.gather(first, *waits, return_exceptions=True)
        await engine.dispose()


async def test_a_reading_connection_that_was_ended_is_replaced_unseen(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await begin_wait(engine, Parcel, 1, until=lambda parcel: True)
    await writer.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
        " and pid <> pg_backend_pid() and application_name <> 'rowsignal listener'"
    )
    assert (await begin_wait(engine, Parcel, 2, until=lambda parcel: True)).id == 2


@pytest.mark.parametrize(
    ("there", "back"),
    [
        ("alter table parcels alter place type bigint", "select"),
        ("alter table parcels add extra int", "alter table parcels drop extra"),
        ("alter table parcels rename to packages", "alter table packages rename to parcels"),
        ("alter table parcels rename place to spot", "alter table parcels rename spot to place"),
        ("alter schema public rename to away", "alter schema away rename to public"),
    ],
)
async def test_waits_go_on_over_changes_of_their_table(
    engine: AsyncEngine, writer: asyncpg.Connection, there: str, back: str
) -> None:
    waits = [begin_wait(engine, Parcel, n, interval=0.05) for n in (1, 2, 3)]
    await until_mode(engine, "armed", table="parcels")
    await writer.execute(there)
    reader = Dispatcher.of(engine)
    asked = [reader.read_soon(rows, rows.row_ids) for rows in reader.rows]
    await asyncio.gather(*asked)
    await writer.execute(back)
    await writer.execute("update public.parcels set place = 1")
    assert {parcel.place for parcel in await asyncio.gather(*waits)} == {1}


async def read_many(engine: AsyncEngine) -> None:
    for key in range(1, MANY):
        await begin_wait(engine, Parcel, key, until=lambda _: True, timeout=30)


@pytest.mark.parametrize("mode", ["transaction", "statement"])
async def test_a_pooler_that_the_engine_is_not_made_for_is_named(
    fragile: EmbeddedPostgres, database: str, mode: str
) -> None:
    async with pgbouncer(fragile, mode=mode) as port:
        engine = create_async_engine(f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{database}")
        if mode == "transaction":  # each next transaction runs on another server connection
            await settings_in_pool(port, database, "statement_timeout")
        with pytest.raises(PoolerError) as caught:
            await read_many(engine)
        error = caught.value
        await close_listener(engine)
        assert "connect_args" in str(error)
        assert "listen_url" in str(error)
        await engine.dispose()
