"""Rows of mapped classes are as the ORM loads them, wherever a stream has them from."""

import asyncio
import logging
import pickle
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change, Reset
from rowsignal.listener import Listener
from rowsignal.streams import ChangeStream, watch
from rowsignal.triggers import install_triggers
from support.typed_rows import ATTRIBUTES, HOST, VALUES, Base, Item, Money, Status
from support.waits import close_listener

CAPTURES: dict[str, dict[str, Any]] = {
    "hints": {},
    "log": {"log": True},
    "values": {"log": True, "row_values": True},
}


@pytest.fixture(params=CAPTURES)
async def captured(engine: AsyncEngine, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base, **CAPTURES[request.param])
    async with Listener(engine):
        yield request.param
    await close_listener(engine)


async def following(stream: ChangeStream[Any]) -> Any:
    async with asyncio.timeout(30):
        return await anext(stream)


async def write(engine: AsyncEngine, *items: Item) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add_all(items)


async def execute(engine: AsyncEngine, statement: str) -> None:
    async with engine.begin() as connection:
        await connection.execute(sa.text(statement))


def attributes(instance: object) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in ATTRIBUTES}


def types_of(values: Mapping[str, Any]) -> dict[str, type[Any]]:
    # asyncpg's UUID is one of its own
    return {
        name: UUID if isinstance(value, UUID) else type(value) for name, value in values.items()
    }


async def test_values_are_those_that_a_session_loads(engine: AsyncEngine, captured: str) -> None:
    async with watch(engine, Item, rows=True) as changes:
        await write(engine, Item(id=1, **VALUES))
        change = await following(changes)
    async with AsyncSession(engine) as session:
        loaded = attributes(await session.get_one(Item, 1))
    assert dict(change.row) == loaded
    assert types_of(change.row) == types_of(loaded)
    assert {name: change.row[name] for name in VALUES} == VALUES
    assert attributes(change.instance) == loaded
    assert change.key == {"item_id": 1}


async def test_nulls_and_single_hosts_are_those_that_a_session_loads(
    engine: AsyncEngine, captured: str
) -> None:
    async with watch(engine, Item, rows=True) as changes:
        await write(engine, Item(id=1, status=Status.NEW, host=HOST))
        change = await following(changes)
    given = {"id": 1, "status": Status.NEW, "host": HOST}
    nothing = dict.fromkeys(ATTRIBUTES)
    assert change.row == nothing | given


async def test_a_snapshot_and_a_predicate_have_the_same_values(
    engine: AsyncEngine, captured: str
) -> None:
    await write(engine, Item(id=1, **VALUES), Item(id=2, status=Status.NEW))
    seen: list[Any] = []

    def wanted(change: Change[Item]) -> bool:
        seen.append(change.row and change.row["status"])
        return change.row is not None and change.row["status"] is Status.PAID

    async with watch(engine, Item, snapshot=True, predicate=wanted) as changes:
        first = await following(changes)
        await execute(engine, "update items set state = 'PAID' where item_id = 2")
        second = await following(changes)
    assert first.instance.cost == Money(Decimal("9.90"), "EUR")
    assert (second.row["id"], second.instance.status) == (2, Status.PAID)
    assert seen == [Status.PAID, Status.NEW, Status.PAID]


async def test_an_instance_is_an_object_of_its_own_attached_to_no_session(
    engine: AsyncEngine, captured: str
) -> None:
    async with watch(engine, Item, rows=True) as changes:
        await write(engine, Item(id=1, **VALUES))
        change = await following(changes)
        await execute(engine, "delete from items")
        gone = await following(changes)
    one, other = change.instance, change.instance
    assert one is not other
    assert sa.inspect(one).detached
    assert pickle.loads(pickle.dumps(change)) == change
    assert gone.row is gone.instance is None
    async with AsyncSession(engine) as session:
        session.add(one)  # it has an identity: not a new row
        assert not session.new


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("""update items set cost = '{"amount": "-1", "currency": "EUR"}'""", "ValueError"),
        ("update items set state = 'LOST'", "LookupError"),
        ("update items set at = '20000-01-01'", "ValueError"),
        ("update items set day = '0044-03-15 BC'", "ValueError"),
        ("update items set clock = '24:00'", "ValueError"),
        ("update items set past_states = '{NEW,LOST}'", "LookupError"),
    ],
)
async def test_a_row_that_its_types_cannot_take_is_a_reset_of_its_table(
    engine: AsyncEngine,
    captured: str,
    caplog: pytest.LogCaptureFixture,
    statement: str,
    what: str,
) -> None:
    await write(engine, *(Item(id=number, status=Status.NEW) for number in (1, 2, 3)))
    await execute(engine, "alter type status add value 'LOST'")
    async with watch(engine, Item, rows=True) as changes, watch(engine, Item) as others:
        await execute(engine, f"{statement} where item_id = 2")
        await execute(engine, "update items set small = 7 where item_id = 3")
        refused, fine = await following(changes), await following(changes)
        told = [await following(others), await following(others)]
    assert isinstance(refused, Reset)
    assert "public.items" in refused.reason
    assert what in refused.reason
    assert fine.row["small"] == 7
    assert [it.key for it in told if isinstance(it, Change)][-1] == {"item_id": 3}
    if captured != "values":  # else the log gives rows that nobody has asked for, too
        assert [it.key for it in told] == [{"item_id": 2}, {"item_id": 3}]
    (line, *_) = [it for it in caplog.records if it.levelno == logging.WARNING]
    assert "{'item_id': 2} of public.items" in line.getMessage()


async def test_a_stream_resumes_after_a_row_that_its_types_could_not_take(
    engine: AsyncEngine,
) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(engine, Base, log=True, row_values=True)
    async with watch(engine, Item, rows=True) as changes:
        start = changes.position
    await write(engine, Item(id=1, status=Status.NEW))
    await execute(engine, "update items set at = '20000-01-01'")
    await execute(engine, "update items set at = null, small = 7")
    async with watch(engine, Item, after=start) as changes:
        first, refused = await following(changes), await following(changes)
        assert isinstance(refused, Reset)
        assert changes.position == refused.position
    async with watch(engine, Item, after=refused.position) as changes:
        assert (await following(changes)).row["small"] == 7
    assert first.row["status"] is Status.NEW
    await close_listener(engine)


async def test_rows_of_a_table_are_as_json_of_postgresql(
    engine: AsyncEngine, captured: str
) -> None:
    table = Item.__table__
    assert isinstance(table, sa.Table)
    async with watch(engine, table, rows=True, columns=["state"]) as changes:
        await write(engine, Item(id=1, **VALUES))
        await execute(engine, "update items set at = '20000-01-01', state = 'NEW'")
        items = [await following(changes) for _ in range(2)]
    change = items[-1]
    assert change.row["state"] == "NEW"
    assert change.row["price_in_cents"] == 990
    assert change.row["at"] == "20000-01-01T00:00:00+00:00"
    assert change.instance is None


class Staff(DeclarativeBase):
    pass


class Person(Staff):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[Status]
    name: Mapped[str | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": Status.NEW,
    }


class Customer(Person):
    discount: Mapped[int | None]
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": Status.PAID}


class Company(Staff):
    __tablename__ = "companies"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    __mapper_args__: ClassVar[dict[str, Any]] = {
        "polymorphic_on": "kind",
        "polymorphic_identity": "company",
    }


class Shop(Company):
    __tablename__ = "shops"
    id: Mapped[int] = mapped_column("shop_id", sa.ForeignKey("companies.id"), primary_key=True)
    street: Mapped[str | None] = mapped_column("address")
    __mapper_args__: ClassVar[dict[str, Any]] = {"polymorphic_identity": "shop"}


async def test_instances_are_of_the_class_that_the_row_says(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Staff.metadata.create_all)
    await install_triggers(engine, Staff)
    async with (
        Listener(engine),
        watch(engine, Person, rows=True) as people,
        watch(engine, Customer, rows=True) as customers,
        watch(engine, Shop, rows=True) as shops,
    ):
        async with AsyncSession(engine) as session, session.begin():
            session.add_all([Person(id=1), Customer(id=2, discount=5), Shop(id=3, street="x")])
        found = {it.key["id"]: it for it in [await following(people) for _ in range(2)]}
        assert type(found[1].instance) is Person
        assert isinstance(found[2].instance, Customer)
        assert found[2].instance.discount == 5
        mine = {it.key["id"]: it for it in [await following(customers) for _ in range(2)]}
        assert mine[1].instance is None
        assert mine[2].instance.discount == 5
        parts = {it.table: it for it in [await following(shops) for _ in range(2)]}
        assert parts["shops"].row == {"id": 3, "street": "x"}
        assert parts["companies"].row == {"id": 3, "kind": "shop"}
        assert parts["shops"].instance is parts["companies"].instance is None
