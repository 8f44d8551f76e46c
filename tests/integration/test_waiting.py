"""Waits: what callers rely on, with and without triggers."""

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import delete, insert, select, text, update
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import selectinload

from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotFoundError, PendingChangesError, WaitTimeoutError
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change
from support.shop import Base, Customer, Line, Order


@pytest.fixture(params=["triggers", "polling"])
async def shop(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Provide a shop with one order, once with triggers and once without."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Customer).values(id=7, name="Ada"))
        await connection.execute(insert(Order).values(id=1, status="new", customer_id=7))
        await connection.execute(insert(Line).values(order_id=1, number=2))
    if request.param == "triggers":
        await install_triggers(engine, Base)
    yield engine
    await Dispatcher.of(engine).listener.close()


@pytest.fixture
async def session(shop: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(shop, expire_on_commit=False) as session:
        yield session


async def commit(engine: AsyncEngine, *statements: object) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(statement)  # type: ignore[call-overload] -- any statement


async def until_watched(engine: AsyncEngine, waits: int = 1) -> None:
    """Return when `waits` waits have had their first look."""
    dispatcher = Dispatcher.of(engine)
    async with asyncio.timeout(30):
        while True:
            seen = [wait for rows in dispatcher.rows for wait in rows if wait.baseline is not None]
            if len(seen) >= waits:
                return
            await asyncio.sleep(0.005)


async def test_a_commit_elsewhere_ends_the_wait(shop: AsyncEngine, session: AsyncSession) -> None:
    order = await session.get_one(Order, 1)
    await session.commit()
    waiting = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=10))
    await until_watched(shop)
    await commit(shop, update(Order).values(status="paid"))
    assert await waiting is order
    assert order.status == "paid"


async def test_positional_arguments_and_names_of_columns_work(
    shop: AsyncEngine, session: AsyncSession
) -> None:
    for columns in (["status"], [Order.status]):
        waiting = asyncio.create_task(
            wait_for_row_change(session, Order, 1, columns=columns, interval=0.05, timeout=10)
        )
        await until_watched(shop)
        await commit(shop, update(Order).values(total=Order.total + 1))
        await commit(shop, update(Order).values(status=Order.status + "!"))
        assert (await waiting).status.endswith("!")


async def test_only_the_named_columns_count(shop: AsyncEngine) -> None:
    waiting = asyncio.create_task(
        wait_for_row_change(shop, Order, 1, columns=[Order.note], interval=0.05, timeout=0.5)
    )
    await until_watched(shop)
    await commit(shop, update(Order).values(status="paid"))
    with pytest.raises(WaitTimeoutError, match=r"Order 1 did not change \(note\) in 0.5 s"):
        await waiting


async def test_all_columns_may_be_named_in_any_order(
    shop: AsyncEngine, session: AsyncSession
) -> None:
    await session.get_one(Line, (1, 2))
    await session.commit()
    waiting = asyncio.create_task(
        wait_for_row_change(session, Line, (1, 2), columns=["quantity", "number", "order_id"])
    )
    await until_watched(shop)
    assert not waiting.done()
    await commit(shop, update(Line).values(quantity=5))
    assert (await waiting).quantity == 5


async def test_a_change_since_the_load_returns_at_once(
    shop: AsyncEngine, session: AsyncSession
) -> None:
    order = await session.get_one(Order, 1)
    await session.commit()
    await commit(shop, update(Order).values(status="paid"))
    assert await wait_for_row_change(session, Order, 1, timeout=10) is order
    assert order.status == "paid"


async def test_there_and_back_again_is_no_change(shop: AsyncEngine, session: AsyncSession) -> None:
    await session.get_one(Order, 1)
    await session.commit()
    await commit(shop, update(Order).values(status="paid"))
    await commit(shop, update(Order).values(status="new"))
    with pytest.raises(WaitTimeoutError):
        await wait_for_row_change(session, Order, 1, timeout=0.2)


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
async def test_a_transaction_with_a_snapshot_sees_each_commit_once(
    shop: AsyncEngine, level: str
) -> None:
    async with AsyncSession(shop.execution_options(isolation_level=level)) as session:
        order = await session.get_one(Order, 1)
        for status in ("paid", "sent"):
            waiting = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=10))
            await until_watched(shop)
            await commit(shop, update(Order).values(status=status))
            assert await waiting is order
            assert order.status == status
        assert await session.scalar(select(Order.status)) == "new"
        with pytest.raises(WaitTimeoutError):
            await wait_for_row_change(session, Order, 1, timeout=0.1)


async def test_loaded_relationships_are_refreshed(shop: AsyncEngine) -> None:
    async with AsyncSession(shop) as session:
        order = await session.get_one(Order, 1, options=[selectinload(Order.customer)])
        assert order.customer is not None
        waiting = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=10))
        await until_watched(shop)
        await commit(shop, update(Order).values(customer_id=None))
        assert (await waiting).customer is None


async def test_deferred_and_expired_columns_need_no_hidden_query(
    shop: AsyncEngine,
) -> None:
    async with AsyncSession(shop, expire_on_commit=True) as session:
        order = await session.get_one(Order, 1)
        await session.commit()
        waiting = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=10))
        await until_watched(shop)
        await commit(shop, update(Order).values(note="fragile", total=Decimal("1.50")))
        assert await waiting is order
        assert order.total == Decimal("1.50")


async def test_without_a_session_the_row_comes_detached_and_complete(shop: AsyncEngine) -> None:
    for source in (shop, async_sessionmaker(shop)):
        waiting = asyncio.create_task(wait_for_row_change(source, Order, 1, timeout=10))
        await until_watched(shop)
        await commit(shop, update(Order).values(note="x", total=Order.total + 1))
        order = await waiting
        assert order.note == "x"
        assert order.total > 0


@pytest.mark.parametrize("key", [(1, 2), {"order_id": 1, "number": 2}])
async def test_composite_keys(shop: AsyncEngine, key: object) -> None:
    waiting = asyncio.create_task(wait_for_row_change(shop, Line, key, timeout=10))
    await until_watched(shop)
    await commit(shop, update(Line).values(quantity=5))
    assert (await waiting).quantity == 5


async def test_an_absent_row(shop: AsyncEngine) -> None:
    with pytest.raises(NotFoundError, match="Order 99 does not exist"):
        await wait_for_row_change(shop, Order, 99)


@pytest.mark.parametrize(
    "end", [delete(Order), text("truncate orders"), text("update orders set id = 2")]
)
async def test_a_row_that_goes_away(shop: AsyncEngine, end: object) -> None:
    waiting = asyncio.create_task(wait_for_row_change(shop, Order, 1, interval=0.05, timeout=10))
    await until_watched(shop)
    await commit(shop, end)
    with pytest.raises(NotFoundError, match="Order 1 was deleted while it was waited for"):
        await waiting


async def test_nan_is_no_change(shop: AsyncEngine) -> None:
    await commit(shop, update(Order).values(weight=math.nan))
    with pytest.raises(WaitTimeoutError):
        await wait_for_row_change(shop, Order, 1, interval=0.05, timeout=0.2)


async def test_a_last_read_comes_before_the_timeout(
    shop: AsyncEngine, session: AsyncSession
) -> None:
    waiting = asyncio.create_task(wait_for_row_change(shop, Line, (1, 2), interval=60, timeout=2))
    await until_watched(shop)
    await commit(shop, update(Line).values(quantity=9))
    assert (await waiting).quantity == 9


@pytest.mark.parametrize("interval", [0, 0.01, 60])
async def test_the_timeout_counts_from_the_call(shop: AsyncEngine, interval: float) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(WaitTimeoutError, match=r"Order 1 did not change \(any column\) in 0.1"):
            await wait_for_row_change(shop, Order, 1, interval=interval, timeout=0.1)


async def test_time_may_be_up_at_once(shop: AsyncEngine, session: AsyncSession) -> None:
    order = await session.get_one(Order, 1)
    await session.commit()
    with pytest.raises(WaitTimeoutError):
        await wait_for_row_change(session, Order, 1, timeout=0)
    await commit(shop, update(Order).values(status="paid"))
    assert await wait_for_row_change(session, Order, 1, timeout=0) is order


async def test_unfinished_changes_are_refused(shop: AsyncEngine, session: AsyncSession) -> None:
    order = await session.get_one(Order, 1)
    order.status = "mine"
    with pytest.raises(PendingChangesError, match="unfinished changes of Order"):
        await wait_for_row_change(session, Order, 1)
    await session.flush()
    with pytest.raises(PendingChangesError):
        await wait_for_row_change(session, Order, 1)
    await session.rollback()
    added = Order(id=3)
    session.add(added)
    with pytest.raises(PendingChangesError):
        await wait_for_row_change(session, Order, 3)
    async with session.begin_nested():
        await session.flush()
    with pytest.raises(PendingChangesError):
        await wait_for_row_change(session, Order, 3)
    assert added in session


async def test_pending_changes_of_other_rows_stay(shop: AsyncEngine, session: AsyncSession) -> None:
    customer = await session.get_one(Customer, 7)
    customer.name = "Grace"
    waiting = asyncio.create_task(wait_for_row_change(session, Order, 1, timeout=10))
    await until_watched(shop)
    await commit(shop, update(Order).values(status="paid"))
    await waiting
    await session.commit()
    assert customer.name == "Grace"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"timeout": timedelta(seconds=5)}, r"pass timeout.total_seconds\(\)"),
        ({"timeout": "5"}, "timeout='5': pass a number of seconds"),
        ({"interval": timedelta(seconds=5)}, "interval is a timedelta"),
        ({"interval": None}, "interval=None"),
        ({"timeout": True}, "timeout=True"),
    ],
)
async def test_times_are_seconds(
    engine: AsyncEngine, arguments: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TypeError, match=complaint):
        await wait_for_row_change(engine, Order, 1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"columns": Order.status}, "non-empty"),
        ({"columns": [1]}, "has no column"),
        ({"columns": ["colour"]}, r"Order has no column 'colour'; it has id, status"),
        ({"columns": []}, "non-empty"),
        ({"columns": "status"}, "non-empty"),
        ({"interval": -1}, "interval=-1"),
        ({"interval": math.nan}, "interval=nan"),
        ({"timeout": -1}, "timeout=-1"),
        ({"timeout": math.nan}, "timeout=nan"),
        ({"pk_value": (1, 2)}, "pass 1 value"),
        ({"pk_value": {"pk": 1}}, "primary key"),
        ({"pk_value": None}, "None"),
    ],
)
async def test_bad_arguments_are_refused_with_the_way_out(
    engine: AsyncEngine, arguments: dict[str, object], complaint: str
) -> None:
    given = {"session": engine, "model": Order, "pk_value": 1} | arguments
    with pytest.raises(ValueError, match=complaint):
        await wait_for_row_change(**given)  # type: ignore[arg-type] -- wrong on purpose


async def test_what_is_no_session_or_no_model_is_refused(engine: AsyncEngine) -> None:
    with pytest.raises(TypeError, match="cannot wait"):
        await wait_for_row_change("postgresql://", Order, 1)  # type: ignore[arg-type] -- wrong on purpose
    with pytest.raises(TypeError, match="not a mapped class"):
        await wait_for_row_change(engine, dict, 1)


async def test_a_table_that_does_not_exist(engine: AsyncEngine) -> None:
    with pytest.raises(Exception, match='relation "orders" does not exist'):
        await wait_for_row_change(engine, Order, 1, timeout=5)
    await Dispatcher.of(engine).listener.close()


async def test_waits_take_nothing_from_the_pool(shop: AsyncEngine) -> None:
    small = create_async_engine(shop.url, pool_size=1, max_overflow=0, pool_timeout=1)
    waiting = [
        asyncio.create_task(wait_for_row_change(small, Order, 1, timeout=10)) for _ in range(50)
    ]
    await until_watched(small, 50)
    async with small.begin() as only:
        await only.execute(update(Order).values(status="paid"))
    assert {order.status for order in await asyncio.gather(*waiting)} == {"paid"}
    await Dispatcher.of(small).listener.close()
    await small.dispose()


async def test_a_schema_translation_is_kept(shop: AsyncEngine) -> None:
    await commit(shop, text("create schema tenant"))
    await commit(shop, text("create table tenant.orders (like orders)"))
    await commit(shop, text("insert into tenant.orders select * from orders"))
    tenant = shop.execution_options(schema_translate_map={None: "tenant"})
    waiting = asyncio.create_task(wait_for_row_change(tenant, Order, 1, interval=0.05, timeout=10))
    await until_watched(shop)
    await commit(shop, text("update orders set status = 'public'"))
    await commit(shop, text("update tenant.orders set status = 'tenant'"))
    assert (await waiting).status == "tenant"


@pytest.mark.parametrize("patience", [0.0, 0.001, 0.01, 0.05])
async def test_a_cancelled_wait_leaves_nothing(shop: AsyncEngine, patience: float) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(patience):
            await wait_for_row_change(shop, Order, 1)
    dispatcher = Dispatcher.of(shop)
    assert not any(len(rows) for rows in dispatcher.rows)
    await dispatcher.listener.close()
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in names if name.startswith("rowsignal")}
