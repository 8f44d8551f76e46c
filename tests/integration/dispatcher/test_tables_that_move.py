"""Tables that are altered, attached, detached and renamed in the middle of waits."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotFoundError
from rowsignal.triggers import TriggerState, install_triggers, trigger_status
from support.hint_listener import connected
from support.waits import NOTIFIED_ONLY, READ_OFTEN, begin_wait, close_listener, until_mode


class Base(DeclarativeBase):
    pass


class Reading(Base):
    __tablename__ = "readings"

    day: Mapped[int] = mapped_column(primary_key=True)
    id: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Turned(Base):
    """The same key in another order than the table's."""

    __tablename__ = "turned"

    second: Mapped[str] = mapped_column(primary_key=True)
    first: Mapped[int] = mapped_column(primary_key=True)
    value: Mapped[int]


class Coded(Base):
    """A key that the table does not call its own."""

    __tablename__ = "coded"

    code: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[int]


TABLES = """
    create table readings (day int, id int, value int not null default 0, primary key (day, id))
        partition by range (day);
    create table first_days partition of readings for values from (0) to (10);
    create table next_days partition of readings for values from (10) to (20);
    create table late_days (id int not null, day int not null, value int not null default 0);
    insert into readings values (1, 1), (2, 1), (11, 1);
    insert into late_days values (1, 31);

    create table turned (first int, second text, value int not null, primary key (first, second));
    insert into turned values (1, 'a', 0), (2, 'a', 0);

    create table coded (id int primary key, code text unique not null, value int not null);
    insert into coded values (1, 'one', 0), (2, 'two', 0);
"""


@pytest.fixture
async def writer(engine: AsyncEngine) -> AsyncIterator[asyncpg.Connection]:
    """Connect to a database of tables that notify; no other look than after a notification."""
    async with connected(engine) as writer:
        await writer.execute(TABLES)
        await install_triggers(engine, ["readings", "turned", "coded"])
        Dispatcher.of(engine, NOTIFIED_ONLY)
        yield writer
    await close_listener(engine)


async def test_partitions_that_come_while_the_root_is_waited_for_tell_of_their_rows(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    through_root = begin_wait(engine, Reading, (1, 1))
    in_partition = begin_wait(engine, Reading, (11, 1))
    await until_mode(engine, "armed", table="readings")
    await writer.execute(
        "create table more_days partition of readings for values from (20) to (30);"
        "alter table readings attach partition late_days for values from (30) to (40);"
        "insert into readings values (21, 1)"
    )
    of_created = begin_wait(engine, Reading, (21, 1))
    of_attached = begin_wait(engine, Reading, (31, 1))
    waits = [through_root, in_partition, of_created, of_attached]
    await until_mode(engine, "armed", table="readings")
    for statement in (
        "update readings set value = 1 where day = 1",
        "update next_days set value = 1",
        "update more_days set value = 1",
        "update late_days set value = 1",
    ):
        assert not waits[0].done()
        await writer.execute(statement)
        assert (await waits.pop(0)).value == 1


async def test_a_partition_made_before_the_wait_notifies_when_it_is_written_itself(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    await writer.execute(
        "alter table readings attach partition late_days for values from (30) to (40)"
    )
    (status,) = await trigger_status(engine, "readings")
    assert status.state is TriggerState.DRIFTED, "TRUNCATE of it would go unseen"
    wait = begin_wait(engine, Reading, (31, 1))
    await until_mode(engine, "armed", table="readings")
    await writer.execute("update late_days set value = 1")
    assert (await wait).value == 1


async def test_rows_that_go_with_a_detached_partition_end_their_waits_at_the_safety_read(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    Dispatcher.of(engine).pace = READ_OFTEN
    going, staying = begin_wait(engine, Reading, (11, 1)), begin_wait(engine, Reading, (1, 1))
    await until_mode(engine, "armed", table="readings")
    await writer.execute("alter table readings detach partition next_days")
    with pytest.raises(NotFoundError, match="was deleted"):
        await going
    await writer.execute("update next_days set value = 1; update readings set value = 1")
    assert (await staying).value == 1


@pytest.mark.parametrize(
    "alteration",
    [
        "alter table readings rename to measurements",
        "alter table readings rename column id to number",
        "drop table readings",
    ],
)
async def test_waits_whose_table_is_no_longer_there_fail_with_what_postgresql_says(
    engine: AsyncEngine, writer: asyncpg.Connection, alteration: str
) -> None:
    Dispatcher.of(engine).pace = READ_OFTEN
    waits = [begin_wait(engine, Reading, key) for key in ((1, 1), (11, 1))]
    await until_mode(engine, "armed", table="readings")
    await writer.execute(alteration)
    if "rename" in alteration:
        await writer.execute(
            "update first_days set value = 1; insert into next_days values (12, 1)"
        )
    for outcome in await asyncio.gather(*waits, return_exceptions=True):
        assert isinstance(outcome, ProgrammingError)
        assert "does not exist" in str(outcome)


async def test_a_renamed_table_wakes_its_waits_before_the_safety_read(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    wait = begin_wait(engine, Reading, (1, 1))
    await until_mode(engine, "armed", table="readings")
    await writer.execute(
        "alter table readings rename to measurements;"
        "create view readings as select * from measurements"
    )
    await writer.execute("update measurements set value = 1")
    assert (await wait).value == 1


async def test_a_model_may_have_its_key_in_another_order_than_the_table(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    wait, other = begin_wait(engine, Turned, ("a", 1)), begin_wait(engine, Turned, ("a", 2))
    await until_mode(engine, "armed", table="turned")
    await writer.execute("update turned set value = 1 where first = 1")
    assert (await wait).value == 1
    assert not other.done()
    await writer.execute("delete from turned where first = 2")
    with pytest.raises(NotFoundError):
        await other


async def test_a_model_may_have_another_key_than_the_table(
    engine: AsyncEngine, writer: asyncpg.Connection
) -> None:
    wait, other = begin_wait(engine, Coded, "one"), begin_wait(engine, Coded, "two")
    await until_mode(engine, "armed", table="coded")
    await writer.execute("update coded set value = 1 where id = 1")
    assert (await wait).value == 1
    assert not other.done()
    await writer.execute("update coded set code = 'three' where id = 2")
    with pytest.raises(NotFoundError):
        await other
