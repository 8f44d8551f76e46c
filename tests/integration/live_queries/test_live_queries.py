"""Live queries: the result now, and whenever it is another."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import joinedload, selectinload

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.live_queries import LiveQuery, live_query
from rowsignal.triggers import install_triggers, uninstall_triggers
from support.shop import Base, Customer, Order
from support.waits import close_listener

PATIENCE = 30.0
NEVER = 3600.0  # so that polling cannot hide what was not told
KINDS = ["log", "hint", "none"]


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield engine
    await close_listener(engine)


async def install(engine: AsyncEngine, kind: str) -> dict[str, float]:
    """Give the tables triggers of a kind; return the pace that tells whether they are needed."""
    if kind == "none":
        return {"interval": 0.0, "poll": 0.05}
    await install_triggers(engine, [Order, Customer], log=kind == "log")
    return {"interval": 0.0, "poll": NEVER}


async def execute(engine: AsyncEngine, *statements: Any) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(statement)


async def following(results: LiveQuery) -> list[Any]:
    """Return the next result."""
    async with asyncio.timeout(PATIENCE):
        return await anext(results)


async def until(results: LiveQuery, wanted: list[Any]) -> None:
    """Return when the result is as wanted."""
    while await following(results) != wanted:
        pass


@pytest.mark.parametrize("kind", KINDS)
async def test_the_result_comes_now_and_whenever_it_is_another(
    shop: AsyncEngine, kind: str
) -> None:
    pace = await install(shop, kind)
    await execute(shop, sa.insert(Order).values(id=1, status="open"))
    open_ones = select(Order.id).where(Order.status == "open").order_by(Order.id)
    async with live_query(shop, open_ones, **pace) as results:
        assert await following(results) == [1]
        await execute(shop, sa.insert(Order).values(id=2, status="open"))
        await until(results, [1, 2])
        await execute(shop, sa.update(Order).where(Order.id == 1).values(status="paid"))
        await until(results, [2])


async def test_a_change_that_leaves_the_result_as_it_is_yields_nothing(shop: AsyncEngine) -> None:
    pace = await install(shop, "log")
    statement = select(Order.id).where(Order.status == "open")
    async with live_query(shop, statement, **pace) as results:
        assert await following(results) == []
        for number in range(5):
            await execute(shop, sa.insert(Order).values(id=number, status="paid"))
        await execute(shop, sa.insert(Order).values(id=9, status="open"))
        assert await following(results) == [9]


@pytest.mark.parametrize("kind", KINDS)
async def test_objects_are_told_apart_by_all_that_is_loaded(shop: AsyncEngine, kind: str) -> None:
    pace = await install(shop, kind)
    await execute(
        shop,
        sa.insert(Customer).values(id=1, name="Ada"),
        sa.insert(Order).values(id=1, status="open", customer_id=1),
    )
    for loading in (joinedload, selectinload):
        statement = select(Order).options(loading(Order.customer))
        async with live_query(shop, statement, **pace) as results:
            (order,) = await following(results)
            before = order.customer.name
            await execute(shop, sa.update(Customer).values(name=f"{before}!"))
            async with asyncio.timeout(PATIENCE):
                while order.customer.name == before:
                    (order,) = await anext(results)
            assert order.customer.name == f"{before}!"


async def test_a_join_is_told_of_both_tables(shop: AsyncEngine) -> None:
    pace = await install(shop, "hint")
    await execute(
        shop,
        sa.insert(Customer).values(id=1, name="Ada"),
        sa.insert(Order).values(id=1, status="open", customer_id=1),
    )
    statement = select(Order.id, Customer.name).join(Customer)
    async with live_query(shop, statement, **pace) as results:
        assert [tuple(row) for row in await following(results)] == [(1, "Ada")]
        await execute(shop, sa.update(Customer).values(name="Eve"))
        async with asyncio.timeout(PATIENCE):
            while [tuple(row) for row in await anext(results)] != [(1, "Eve")]:
                pass


async def test_tables_of_subqueries_and_ctes_count(shop: AsyncEngine) -> None:
    pace = await install(shop, "log")
    adas = select(Customer.id).where(Customer.name == "Ada").cte()
    statement = select(sa.func.count()).where(
        sa.exists().where(Customer.name == "Eve"), sa.exists(select(adas.c.id))
    )
    async with live_query(shop, statement, **pace) as results:
        assert await following(results) == [0]
        await execute(shop, sa.insert(Customer).values([{"id": 1, "name": "Ada"}]))
        await execute(shop, sa.insert(Customer).values([{"id": 2, "name": "Eve"}]))
        await until(results, [1])


async def test_equal_statements_are_one_query(shop: AsyncEngine) -> None:
    pace = await install(shop, "log")
    sent: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "FROM orders" in statement:
            sent.append(statement)

    def statement() -> sa.Select[Any]:
        return select(Order.id).where(Order.status.in_(["open", "new"])).order_by(Order.id)

    async with live_query(shop, statement(), **pace) as first:
        event.listen(sa.engine.Engine, "before_cursor_execute", note)
        try:
            assert await following(first) == []
            async with live_query(shop, statement(), **pace) as second:
                assert await following(second) == []
                sent.clear()
                await execute(shop, sa.insert(Order).values(id=1, status="open"))
                await until(first, [1])
                await until(second, [1])
                assert len(sent) <= 2, "one read for both, and perhaps one that was under way"
                other = select(Order.id).where(Order.status.in_(["paid"]))
                async with live_query(shop, other, **pace) as third:
                    assert await following(third) == []
        finally:
            event.remove(sa.engine.Engine, "before_cursor_execute", note)


async def test_the_pace_is_bounded_and_the_last_result_comes(shop: AsyncEngine) -> None:
    await install(shop, "log")
    statement = select(sa.func.count()).select_from(Order)
    seen: list[int] = []
    async with live_query(shop, statement, interval=0.2, poll=NEVER) as results:
        seen += await following(results)
        for number in range(200):
            await execute(shop, sa.insert(Order).values(id=number))
        while seen[-1] < 200:
            seen += await following(results)
    assert seen == sorted(set(seen))
    assert len(seen) < 100, "many changes, few results"


async def test_an_error_of_the_query_ends_it_alone(shop: AsyncEngine) -> None:
    pace = await install(shop, "log")
    await execute(shop, sa.insert(Order).values(id=1, weight=1.0))
    inverse = select(1 / sa.cast(Order.weight, sa.Integer))
    async with (
        live_query(shop, inverse, **pace) as failing,
        live_query(shop, select(Order.weight), **pace) as working,
    ):
        assert await following(failing) == [1]
        assert await following(working) == [1.0]
        await execute(shop, sa.update(Order).values(weight=0.0))
        await until(working, [0.0])
        with pytest.raises(DBAPIError, match="division by zero"):
            await following(failing)
        await execute(shop, sa.update(Order).values(weight=2.0))
        await until(working, [2.0])
    await execute(shop, sa.update(Order).values(weight=1.0))
    async with live_query(shop, inverse, **pace) as again:
        assert await following(again) == [1]


async def test_who_joins_sees_what_is_committed_by_then(shop: AsyncEngine) -> None:
    await install(shop, "none")
    statement = select(Order.id).order_by(Order.id)
    pace = {"interval": 0.0, "poll": NEVER}
    async with live_query(shop, statement, **pace) as first:
        assert await following(first) == []
        await execute(shop, sa.insert(Order).values(id=1))
        async with live_query(shop, statement, **pace) as second:
            assert await following(second) == [1]
        assert await following(first) == [1]


async def test_triggers_that_go_are_noticed(
    shop: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowsignal.live_queries.queries.SAFETY_INTERVAL", 0.3)
    await install(shop, "log")
    async with live_query(shop, select(Order.id), interval=0.0, poll=0.1) as results:
        assert await following(results) == []
        await uninstall_triggers(shop, [Order, Customer])
        await execute(shop, sa.insert(Order).values(id=1))
        assert await following(results) == [1]


async def test_a_view_is_polled(shop: AsyncEngine) -> None:
    await install(shop, "log")
    await execute(shop, sa.text("create view busy as select id from orders where status = 'open'"))
    busy = sa.table("busy", sa.column("id"))
    async with live_query(shop, select(busy.c.id), interval=0.0, poll=0.05) as results:
        assert await following(results) == []
        await execute(shop, sa.insert(Order).values(id=3, status="open"))
        assert await following(results) == [3]


async def test_it_goes_on_after_a_restart_of_the_server() -> None:
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url, pool_pre_ping=True)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await install_triggers(engine, Order, log=True)
        statement = select(Order.id).order_by(Order.id)
        async with live_query(engine, statement, interval=0.0, poll=NEVER) as results:
            assert await following(results) == []
            await asyncio.to_thread(server.restart)
            await execute(engine, sa.insert(Order).values(id=1))
            await until(results, [1])
        await close_listener(engine)
        await engine.dispose()


async def test_bad_input_is_refused(shop: AsyncEngine) -> None:
    with pytest.raises(TypeError, match=r"runs a select\(...\), not a TextClause"):
        live_query(shop, sa.text("select 1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="poll is a number of seconds above 0"):
        live_query(shop, select(Order), poll=0.0)
    with pytest.raises(RuntimeError, match="in `async with`"):
        await anext(live_query(shop, select(Order)))
