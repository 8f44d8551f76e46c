"""What else ends a wait: a condition, a row that appears or goes, the first of several."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, event, exists, func, insert, or_, select, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal import (
    NotFoundError,
    PendingChangesError,
    WaitTimeoutError,
    wait_for_any_row_change,
    wait_for_row,
    wait_for_row_change,
    wait_for_row_deleted,
)
from rowsignal.dispatcher import Dispatcher
from rowsignal.triggers import install_triggers
from support.shop import Base, Customer, Line, Order
from support.waits import NOTIFIED_ONLY, begin_wait, close_listener, until_mode

MANY = 300


@pytest.fixture(params=["triggers", "polling"])
async def shop(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in range(1, 6)])
        await connection.execute(insert(Line).values(order_id=1, number=2))
    if request.param == "triggers":
        await install_triggers(engine, Base)
    yield engine
    await close_listener(engine)


async def commit(engine: AsyncEngine, *statements: Any) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(statement)


async def until_read(engine: AsyncEngine, count: int = 1) -> None:
    """Return when so many waits have had a read."""
    async with asyncio.timeout(30):
        while sum(wait.is_read for rows in Dispatcher.of(engine).rows for wait in rows) < count:
            await asyncio.sleep(0.005)


IN_A_WEEK = func.now() + timedelta(days=7)
CRITERIA = {
    "a path into JSON": (Order.details["a"]["b"].astext == "x", {"details": {"a": {"b": "x"}}}),
    "JSON that contains": (Order.details.contains({"a": 1}), {"details": {"a": 1, "b": 2}}),
    "arithmetic": (Order.total + 1 > Decimal("9.5"), {"total": Decimal(9)}),
    "between": (Order.total.between(3, 4), {"total": Decimal(3)}),
    "like": (Order.status.like("pa%"), {"status": "paid"}),
    "a function": (func.length(Order.status) == 7, {"status": "shipped"}),
    "null": (Order.customer_id.is_(None) & (Order.status == "orphan"), {"status": "orphan"}),
    "a time": (Order.placed_at > func.now() + timedelta(days=1), {"placed_at": IN_A_WEEK}),
    "not": (~Order.status.in_(["new"]), {"status": "old"}),
    "a deferred column": (Order.note == "fragile", {"note": "fragile"}),
}
CONDITIONS = {
    "a function": lambda order: order.status == "paid",
    "a criterion": Order.status == "paid",
    "a list": Order.status.in_(["paid", "sent"]),
    "several": or_(Order.status == "paid", Order.total > 99),
}


@pytest.mark.parametrize("until", CONDITIONS.values(), ids=CONDITIONS)
async def test_a_wait_ends_when_its_condition_holds_and_not_before(
    shop: AsyncEngine, until: Any
) -> None:
    async with AsyncSession(shop) as session:
        for source in (shop, session):
            await commit(shop, update(Order).values(status="new"))
            wait = asyncio.create_task(
                wait_for_row_change(source, Order, 1, until=until, interval=0.05, timeout=30)
            )
            await until_read(shop)
            await commit(shop, update(Order).values(status="packed", total=Order.total + 1))
            other = begin_wait(shop, Order, 1, until=Order.status == "packed")
            assert (await other).status == "packed"
            assert not wait.done()
            await commit(shop, update(Order).values(status="paid"))
            order = await wait
            assert order.status == "paid"
            assert (source is session) == (order in session)


@pytest.mark.parametrize(("until", "values"), CRITERIA.values(), ids=CRITERIA)
async def test_criteria_of_many_kinds(
    shop: AsyncEngine, until: Any, values: dict[str, Any]
) -> None:
    wait = begin_wait(shop, Order, 1, until=until, interval=0.05)
    other = begin_wait(shop, Order, 2, until=until, interval=0.05)
    await commit(shop, update(Order).where(Order.id == 1).values(**values))
    assert (await wait).id == 1
    assert not other.done()
    other.cancel()


@pytest.mark.parametrize("until", CONDITIONS.values(), ids=CONDITIONS)
async def test_a_condition_that_holds_already_ends_the_wait_at_once(
    shop: AsyncEngine, until: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowsignal.waiting.waits.LAST_READ", 30.0)
    await commit(shop, update(Order).values(status="paid"))
    assert (await wait_for_row_change(shop, Order, 1, until=until, timeout=0)).status == "paid"
    async with AsyncSession(shop) as session:
        order = await session.get_one(Order, 1)
        await session.commit()
        assert await wait_for_row_change(session, Order, 1, until=until, timeout=30) is order
        assert order.status == "paid"


async def test_a_condition_that_does_not_hold_in_time(shop: AsyncEngine) -> None:
    for until in CONDITIONS.values():
        with pytest.raises(WaitTimeoutError, match=r"Order 1 did not meet the condition in 0.1 s"):
            await wait_for_row_change(shop, Order, 1, until=until, timeout=0.1)


async def test_a_condition_on_a_row_that_is_deleted_or_absent(shop: AsyncEngine) -> None:
    wait = begin_wait(shop, Order, 1, until=Order.status == "paid", interval=0.05)
    await until_read(shop)
    await commit(shop, delete(Order).where(Order.id == 1))
    with pytest.raises(NotFoundError, match="was deleted while"):
        await wait
    with pytest.raises(NotFoundError, match="does not exist"):
        await wait_for_row_change(shop, Order, 99, until=lambda order: True)


async def test_a_null_is_no_yes(shop: AsyncEngine) -> None:
    with pytest.raises(WaitTimeoutError):
        await wait_for_row_change(shop, Order, 1, until=Order.customer_id > 0, timeout=0.1)


async def test_waits_with_one_criterion_and_many_values_are_read_in_one_query(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in range(1, MANY + 1)])
    await install_triggers(engine, [Order])
    Dispatcher.of(engine, NOTIFIED_ONLY)
    waits = [
        begin_wait(engine, Order, n, until=Order.total >= Decimal(n)) for n in range(1, MANY + 1)
    ]
    await until_mode(engine, "armed")
    reads: list[str] = []
    event.listen(
        engine.sync_engine.dialect, "do_execute", lambda *facts: reads.append(str(facts[1]))
    )
    await commit(engine, update(Order).values(total=Order.id - Decimal("0.5")))
    await until_quiet(reads)
    assert not any(wait.done() for wait in waits)
    reads.clear()
    await commit(engine, update(Order).values(total=Order.id))
    assert [order.id for order in await asyncio.gather(*waits)] == list(range(1, MANY + 1))
    of_rows = [one for one in reads if "unnest" in one and "orders" in one]
    assert 1 <= len(of_rows) <= MANY // 10, "some hints may arrive while the first are read"
    await close_listener(engine)


async def until_quiet(reads: list[str]) -> None:
    async with asyncio.timeout(30):
        while not any("unnest" in one and "orders" in one for one in reads):
            await asyncio.sleep(0.01)


async def test_a_function_that_raises_ends_its_own_wait(shop: AsyncEngine) -> None:
    fine = begin_wait(shop, Order, 1, until=lambda order: order.status == "paid", interval=0.05)
    for broken in (lambda order: order.colour, lambda order: order.customer.name):
        with pytest.raises(Exception, match=r"colour|customer"):
            await wait_for_row_change(shop, Order, 1, until=broken)
    await commit(shop, update(Order).values(status="paid"))
    assert (await fine).status == "paid"


async def test_a_criterion_that_fails_on_one_row_ends_that_wait_alone(shop: AsyncEngine) -> None:
    await commit(shop, update(Order).where(Order.id > 1).values(total=Decimal(1)))
    until = 1 / Order.total > Decimal("1.5")
    fine = [begin_wait(shop, Order, n, until=until, interval=0.05) for n in (2, 3, 4)]
    with pytest.raises(ValueError, match="Order 1 cannot be read") as caught:
        await wait_for_row_change(shop, Order, 1, until=until)
    assert "division by zero" in str(caught.value)
    await until_read(shop, 3)
    await commit(shop, update(Order).where(Order.id > 1).values(total=Decimal("0.5")))
    assert {order.total for order in await asyncio.gather(*fine)} == {Decimal("0.5")}


def call(function: Any, order: Order) -> Any:
    return function(order)


async def async_condition(order: Order) -> bool:
    return True


@pytest.mark.parametrize(
    ("until", "complaint"),
    [
        (True, "until is a bool"),
        ("status = 'paid'", "until cannot be a str"),
        (async_condition, "until cannot be asynchronous"),
        (Customer.name == "Ada", "Order itself only"),
        (exists(select(Customer.id)), "Order itself only"),
        (Order.customer.has(), "Order itself only"),
    ],
)
async def test_conditions_that_cannot_work_are_refused(
    engine: AsyncEngine, until: Any, complaint: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=complaint):
        await wait_for_row_change(engine, Order, 1, until=until)


async def test_an_awaitable_answer_is_refused(shop: AsyncEngine) -> None:
    with pytest.raises(TypeError, match="asynchronous"):
        await wait_for_row_change(shop, Order, 1, until=partial(call, async_condition))


async def test_a_row_that_appears(shop: AsyncEngine) -> None:
    assert (await wait_for_row(shop, Order, 1, timeout=0)).id == 1
    async with AsyncSession(shop) as session:
        for source, key in ((shop, 77), (session, 78)):
            wait = asyncio.create_task(wait_for_row(source, Order, key, interval=0.05, timeout=30))
            await until_read(shop)
            await commit(shop, update(Order).values(total=1))
            assert not wait.done()
            await commit(shop, insert(Order).values(id=key, status="fresh"))
            assert (await wait).status == "fresh"
    with pytest.raises(WaitTimeoutError, match=r"Order 99 did not appear in 0.1 s"):
        await wait_for_row(shop, Order, 99, timeout=0.1)


async def test_a_row_that_goes(shop: AsyncEngine) -> None:
    await wait_for_row_deleted(shop, Order, 99, timeout=0)
    wait = asyncio.create_task(wait_for_row_deleted(shop, Order, 2, interval=0.05, timeout=30))
    await until_read(shop)
    await commit(shop, update(Order).values(total=1))
    assert not wait.done()
    await commit(shop, delete(Order).where(Order.id == 2))
    await wait
    with pytest.raises(WaitTimeoutError, match=r"Order 1 was not deleted in 0.1 s"):
        await wait_for_row_deleted(shop, Order, 1, timeout=0.1)


async def test_the_first_of_several_rows(shop: AsyncEngine) -> None:
    async with AsyncSession(shop) as session:
        for source in (shop, session):
            wait = asyncio.create_task(
                wait_for_any_row_change(source, Order, [3, 4, 4, 5], interval=0.05, timeout=30)
            )
            await until_read(shop, 3)
            await commit(shop, update(Order).where(Order.id == 1).values(total=7))
            await commit(shop, update(Order).where(Order.id == 4).values(status=Order.status + "!"))
            key, order = await wait
            assert (key, order.id, order.status[-1]) == (4, 4, "!")
    assert not any(len(rows) for rows in Dispatcher.of(shop).rows)


async def test_the_first_of_several_rows_to_meet_a_condition(shop: AsyncEngine) -> None:
    await commit(shop, update(Order).where(Order.id == 5).values(status="paid"))
    until = Order.status == "paid"
    key, order = await wait_for_any_row_change(shop, Order, {3, 4, 5}, until=until, timeout=30)
    assert (key, order.id) == (5, 5)
    key, line = await wait_for_any_row_change(
        shop, Line, [{"order_id": 1, "number": 2}], until=Line.quantity == 1
    )
    assert (key, line.quantity) == ({"order_id": 1, "number": 2}, 1)


async def test_several_rows_are_checked(shop: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="empty"):
        await wait_for_any_row_change(shop, Order, [])
    with pytest.raises(TypeError, match="list of primary keys"):
        await wait_for_any_row_change(shop, Order, "12")
    with pytest.raises(NotFoundError, match="Order 99"):
        await wait_for_any_row_change(shop, Order, [1, 99])
    with pytest.raises(WaitTimeoutError, match="Order 1, 2 did not change"):
        await wait_for_any_row_change(shop, Order, [1, 2], timeout=0.1)
    async with AsyncSession(shop) as session:
        (await session.get_one(Order, 2)).status = "mine"
        with pytest.raises(PendingChangesError):
            await wait_for_any_row_change(session, Order, [1, 2])
