"""What the caller's session holds, sees and has written, beside what a wait sees from outside."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import JSON, REAL, Float, ForeignKey, LargeBinary, event, insert, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, selectinload

from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotFoundError, PendingChangesError, WaitTimeoutError
from rowsignal.listener import Listener
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row, wait_for_row_change, wait_for_row_deleted
from support.hint_listener import connected, database_of
from support.shop import Base, Customer, Order
from support.waits import begin_wait, close_listener


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Customer).values(id=7, name="Ada"))
        await connection.execute(insert(Order).values(id=1, status="new", customer_id=7))
    await install_triggers(engine, Base)
    yield engine
    await close_listener(engine)


@pytest.fixture
async def writer(shop: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with connected(shop) as writer:
        yield writer


async def until_read(engine: AsyncEngine, count: int = 1) -> None:
    async with asyncio.timeout(30):
        while sum(wait.is_read for rows in Dispatcher.of(engine).rows for wait in rows) < count:
            await asyncio.sleep(0.005)


TENANTS = """
    create schema tenant; create schema neighbour;
    create table tenant.orders (like public.orders including all);
    create table neighbour.orders (like public.orders including all);
    insert into tenant.orders (id, status, total, weight) values (1, 'tenant', 0, 0);
    insert into neighbour.orders (id, status, total, weight) values (1, 'neighbour', 0, 0);
"""


async def test_names_resolve_as_in_the_session_that_set_its_search_path(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute(TENANTS)
    for name in ("tenant", "neighbour"):
        async with AsyncSession(shop) as session:
            await session.execute(text(f"set local search_path = {name}"))
            order = await session.get_one(Order, 1)
            wait = asyncio.create_task(
                wait_for_row_change(session, Order, 1, interval=0.05, timeout=30)
            )
            await until_read(shop)
            await writer.execute("update public.orders set status = status || '?'")
            await writer.execute(f"update {name}.orders set status = status || '!'")
            assert await wait is order
            assert order.status == f"{name}!"
    assert (await wait_for_row(shop, Order, 1)).status == "new??"


async def test_names_resolve_as_a_hook_of_the_session_chooses_for_each_transaction(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute(TENANTS)
    async with AsyncSession(shop, expire_on_commit=False) as session:

        @event.listens_for(session.sync_session, "after_begin")
        def choose(_session: Any, _transaction: Any, connection: Any) -> None:
            connection.exec_driver_sql("set local search_path = tenant")

        order = await session.get_one(Order, 1)
        await session.commit()
        await writer.execute("update tenant.orders set status = 'paid'")
        assert await wait_for_row_change(session, Order, 1, timeout=30) is order
        assert order.status == "paid"
        assert not session.in_transaction() or order in session


async def test_the_search_path_of_connect_args_holds_with_a_listen_url(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute(TENANTS)
    settings = {"server_settings": {"search_path": "tenant"}}
    ours = create_async_engine(shop.url, connect_args=settings)
    url = shop.url.render_as_string(hide_password=False)
    async with Listener(ours, listen_url=url):
        assert (await wait_for_row(ours, Order, 1, timeout=30)).status == "tenant"
    await ours.dispose()


async def test_the_search_path_of_another_driver_holds(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    pytest.importorskip("psycopg")
    await writer.execute(TENANTS)
    ours = create_async_engine(
        shop.url.set(drivername="postgresql+psycopg"),
        connect_args={"options": "-csearch_path=tenant"},
    )
    assert (await wait_for_row(ours, Order, 1, timeout=30)).status == "tenant"
    await close_listener(ours)
    await ours.dispose()


async def test_a_temporary_table_is_refused(shop: AsyncEngine) -> None:
    async with AsyncSession(shop) as session:
        await session.execute(text("create temporary table orders (like public.orders)"))
        with pytest.raises(ValueError, match="temporary table"):
            await wait_for_row_change(session, Order, 1)
        await session.rollback()


async def test_row_level_security_is_named_where_it_hides_the_row(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    role = f"tenant_{database_of(shop)}"
    await writer.execute(
        f"create role {role} login; grant all on all tables in schema public to {role};"
        " alter table orders enable row level security;"
        " create policy one on orders"
        " using (customer_id = current_setting('app.tenant', true)::int)"
    )
    ours = create_async_engine(shop.url.set(username=role))
    try:
        async with AsyncSession(ours) as session:
            await session.execute(text("set local app.tenant = '7'"))
            await session.get_one(Order, 1)
            with pytest.raises(NotFoundError, match="row-level security"):
                await wait_for_row_change(session, Order, 1, timeout=30)
    finally:
        await close_listener(ours)
        await ours.dispose()
        await writer.execute(f"drop owned by {role}; drop role {role}")


async def test_changes_by_a_statement_of_the_sessions_own_transaction_are_refused(
    shop: AsyncEngine,
) -> None:
    for nested in (False, True):
        async with AsyncSession(shop) as session:
            order = await session.get_one(Order, 1)
            if nested:
                async with session.begin_nested():
                    await session.execute(text("update orders set status = 'mine' where id = 1"))
            else:
                await session.execute(text("update orders set status = 'mine' where id = 1"))
            with pytest.raises(PendingChangesError, match="unfinished changes of Order 1"):
                await wait_for_row_change(session, Order, 1)
            await session.rollback()
            await session.refresh(order)
            await session.execute(text("update customers set name = 'Eve'"))
            with pytest.raises(WaitTimeoutError):
                await wait_for_row_change(session, Order, 1, timeout=0.1)
            await session.rollback()


async def test_a_deletion_by_the_session_itself_is_refused(shop: AsyncEngine) -> None:
    async with AsyncSession(shop) as session:
        order = await session.get_one(Order, 1)
        await session.delete(order)
        for wait in (wait_for_row_change, wait_for_row_deleted):
            with pytest.raises(PendingChangesError):
                await wait(session, Order, 1)
        await session.flush()
        with pytest.raises(PendingChangesError):
            await wait_for_row_change(session, Order, 1)


async def test_rows_of_an_outer_transaction_are_waited_for_from_outside(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    async with shop.connect() as connection:
        outer = await connection.begin()
        options = {"join_transaction_mode": "create_savepoint", "expire_on_commit": False}
        async with AsyncSession(connection, **options) as session:
            session.add(added := Order(id=2))
            await session.commit()
            changed = await session.get_one(Order, 1)
            changed.status = "mine"
            await session.commit()
            for order in (added, changed):
                with pytest.raises(WaitTimeoutError):
                    await wait_for_row_change(session, Order, order.id, timeout=0.2)
            wait = asyncio.create_task(wait_for_row_change(session, Order, 2, timeout=30))
            await until_read(shop)
            assert not wait.done()
            wait.cancel()
        await outer.rollback()


async def test_a_row_deleted_before_the_wait_is_said_to_be(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    async with AsyncSession(shop, expire_on_commit=False) as session:
        order = await session.get_one(Order, 1)
        await session.commit()
        await writer.execute("delete from orders")
        with pytest.raises(NotFoundError, match="deleted before the wait began"):
            await wait_for_row_change(session, Order, 1)
        assert order.status == "new"


async def test_a_refresh_in_a_snapshot_does_not_end_the_next_wait(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    engine = shop.execution_options(isolation_level="REPEATABLE READ")
    async with AsyncSession(engine) as session:
        order = await session.get_one(Order, 1, options=[selectinload(Order.customer)])
        for number in range(1, 4):
            wait = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=30))
            await until_read(shop)
            await writer.execute("update orders set total = $1", number)
            assert await wait is order
            assert order.total == number, "the values from outside, relationships loaded or not"
            await session.refresh(order)
            with pytest.raises(WaitTimeoutError):
                await wait_for_row_change(session, Order, 1, timeout=0.1)


async def test_there_and_back_again_returns_what_ended_the_wait(
    shop: AsyncEngine, writer: asyncpg.Connection
) -> None:
    for _ in range(20):
        waits = [begin_wait(shop, Order, 1, columns=columns) for columns in (None, ["status"])]
        await until_read(shop, 2)
        await writer.execute("update orders set status = 'paid'")
        await writer.execute("update orders set status = 'new'")
        await asyncio.wait(waits, timeout=0.05)
        for wait in waits:
            if wait.done():
                assert (await wait).status == "paid"
            wait.cancel()
        await asyncio.gather(*waits, return_exceptions=True)


class Odd(DeclarativeBase):
    pass


class Oddity(Odd):
    __tablename__ = "oddities"

    id: Mapped[int] = mapped_column(primary_key=True)
    document: Mapped[Any] = mapped_column(JSONB, nullable=True)
    plain: Mapped[Any] = mapped_column(JSON, nullable=True)
    numbers: Mapped[list[float] | None] = mapped_column(ARRAY(Float))
    blob: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)


class Keyed(Odd):
    __tablename__ = "keyed"

    key: Mapped[Any] = mapped_column(JSONB, primary_key=True)
    value: Mapped[int]


class Small(Odd):
    __tablename__ = "small"

    key: Mapped[float] = mapped_column(REAL, primary_key=True)
    value: Mapped[int]


@pytest.fixture
async def oddities(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    async with engine.begin() as connection:
        await connection.run_sync(Odd.metadata.create_all)
    await install_triggers(engine, Odd)
    async with connected(engine) as writer:
        await writer.execute("insert into oddities (id) values (1)")
        yield writer
    await close_listener(engine)


@pytest.mark.parametrize(
    ("column", "before", "after"),
    [
        ("document", "1", "true"),
        ("document", "0", "false"),
        ("plain", '{"a": [1]}', '{"a": [true]}'),
        ("document", "[1, {}]", "[1, []]"),
    ],
)
async def test_values_that_python_calls_equal_are_told_apart(
    engine: AsyncEngine, oddities: asyncpg.Connection, column: str, before: str, after: str
) -> None:
    await oddities.execute(f"update oddities set {column} = '{before}'")
    wait = begin_wait(engine, Oddity, 1, columns=[column])
    await until_read(engine)
    await oddities.execute(f"update oddities set {column} = '{after}'")
    await wait


async def test_a_nan_within_an_array_is_no_change(
    engine: AsyncEngine, oddities: asyncpg.Connection
) -> None:
    await oddities.execute("update oddities set numbers = '{1, NaN}'")
    with pytest.raises(WaitTimeoutError):
        await wait_for_row_change(engine, Oddity, 1, interval=0.02, timeout=0.2)
    wait = begin_wait(engine, Oddity, 1)
    await until_read(engine)
    await oddities.execute("update oddities set numbers = '{2, NaN}'")
    numbers = (await wait).numbers
    assert numbers is not None
    assert (numbers[0], math.isnan(numbers[1])) == (2, True)


async def test_ten_megabytes(engine: AsyncEngine, oddities: asyncpg.Connection) -> None:
    wait = begin_wait(engine, Oddity, 1)
    await until_read(engine)
    await oddities.execute("update oddities set blob = decode(repeat('ab', 10000000), 'hex')")
    assert len((await wait).blob or b"") == 10_000_000


async def test_deferred_columns_that_are_not_waited_for_are_not_read(
    engine: AsyncEngine, oddities: asyncpg.Connection
) -> None:
    reads: list[str] = []
    event.listen(engine.sync_engine.dialect, "do_execute", lambda *facts: reads.append(facts[1]))
    async with AsyncSession(engine) as session:
        wait = asyncio.create_task(
            wait_for_row_change(session, Oddity, 1, columns=["document"], timeout=30)
        )
        await until_read(engine)
        await oddities.execute("update oddities set document = '[]'")
        assert (await wait).document == []
    of_rows = [read for read in reads if "unnest" in read and "oddities" in read]
    assert of_rows
    assert not any("blob" in read for read in of_rows)


class Animal(Odd):
    __tablename__ = "animals"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    name: Mapped[str]

    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "animal"}  # noqa: RUF012 -- SQLAlchemy's way


class Dog(Animal):
    __tablename__ = "dogs"

    id: Mapped[int] = mapped_column(ForeignKey("animals.id"), primary_key=True)
    tricks: Mapped[int]

    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012 -- SQLAlchemy's way


async def test_a_child_that_is_waited_for_as_its_parent_is_refreshed_in_whole(
    engine: AsyncEngine, oddities: asyncpg.Connection
) -> None:
    await oddities.execute("insert into animals values (1, 'dog', 'Rex')")
    await oddities.execute("insert into dogs values (1, 0)")
    async with AsyncSession(engine, expire_on_commit=False) as session:
        dog = await session.get_one(Dog, 1)
        await session.commit()
        wait = asyncio.create_task(wait_for_row_change(session, Animal, 1, timeout=30))
        await until_read(engine)
        await oddities.execute("begin; update dogs set tricks = 3; update animals set name = 'Max'")
        await oddities.execute("commit")
        assert await wait is dog
        assert (dog.name, dog.tricks) == ("Max", 3)
    detached = begin_wait(engine, Animal, 1)
    await until_read(engine)
    await oddities.execute("update animals set name = 'Rex'")
    found = await detached
    assert isinstance(found, Dog)
    assert (found.name, found.tricks) == ("Rex", 3)


async def test_objects_of_many_waits_are_loaded_together(
    engine: AsyncEngine, oddities: asyncpg.Connection
) -> None:
    await oddities.execute(
        "insert into animals select n, 'animal', '' from generate_series(1, 200) n"
    )
    waits = [begin_wait(engine, Animal, n) for n in (*range(1, 201), 200)]
    await until_read(engine, 201)
    reads: list[str] = []
    event.listen(engine.sync_engine.dialect, "do_execute", lambda *facts: reads.append(facts[1]))
    await oddities.execute("update animals set name = 'x'")
    animals = await asyncio.gather(*waits)
    assert {animal.name for animal in animals} == {"x"}
    assert animals[-1] is not animals[-2], "each has an object of its own"
    assert len([read for read in reads if "unnest" in read and "animals" in read]) < 20


@pytest.mark.parametrize("key", [{"a": [1, 2]}, "text", 7, ["x"], True], ids=str)
async def test_keys_of_jsonb(engine: AsyncEngine, oddities: asyncpg.Connection, key: Any) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(insert(Keyed).values(key=key, value=0))
        await session.execute(insert(Keyed).values(key={"other": 1}, value=0))
        await session.commit()
    wait, other = begin_wait(engine, Keyed, key), begin_wait(engine, Keyed, {"other": 1})
    await until_read(engine, 2)
    await oddities.execute("update keyed set value = 1 where key = $1::jsonb", json.dumps(key))
    found = await wait
    assert (found.key, found.value) == (key, 1)
    assert not other.done()
    other.cancel()


async def test_keys_of_float4(engine: AsyncEngine, oddities: asyncpg.Connection) -> None:
    await oddities.execute("insert into small values (0.1, 0)")
    sessions = async_sessionmaker(engine)
    async with sessions() as session:
        for source in (engine, session):
            wait = asyncio.create_task(wait_for_row_change(source, Small, 0.1, timeout=30))
            await until_read(engine)
            await oddities.execute("update small set value = value + 1")
            assert (await wait).value > 0
