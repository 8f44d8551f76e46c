"""What a server, a role or a setting can do to writers and waits; each hazard as it comes out."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count, repeat
from typing import Any

import asyncpg
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.dispatcher import Dispatcher
from rowsignal.doctor import Finding, Severity, diagnose
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import TriggerInstallError
from rowsignal.listener import Listener, Timings
from rowsignal.payload import LOCK_CLASS
from rowsignal.triggers import install_triggers, trigger_status
from support.hint_listener import connected, database_of, listening
from support.shop import Base, Order
from support.waits import (
    NOTIFIED_ONLY,
    READ_OFTEN,
    begin_wait,
    close_listener,
    until_listening,
    until_mode,
)

QUICK = Timings(canary=0.1, query_timeout=2.0, idle_timeout=0.2, delays=lambda: repeat(0.05))
MANY = 300
numbers = count()


@pytest.fixture(scope="module")
def small() -> Iterator[EmbeddedPostgres]:
    """Provide a server with a short notification queue that takes prepared transactions."""
    settings = {"max_prepared_transactions": "5", "max_notify_queue_pages": "64"}
    with EmbeddedPostgres() as probe:
        if int(probe.version.partition(".")[0]) < 17:
            del settings["max_notify_queue_pages"]
    with EmbeddedPostgres(settings=settings) as server:
        yield server


@asynccontextmanager
async def shop_on(server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    """Provide an engine on a database of its own, with two orders and no triggers yet."""
    name = f"hazard_{next(numbers)}"
    main = await asyncpg.connect(server.dsn)
    await main.execute(f"create database {name}")
    engine = create_async_engine(server.url_of(name))
    try:
        await open_shop(engine)
        yield engine
    finally:
        await close_listener(engine)
        await engine.dispose()
        await main.execute(f"drop database {name} with (force)")
        await main.close()


async def open_shop(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": 1}, {"id": 2}])


async def pay(writer: asyncpg.Connection, key: int = 1) -> None:
    await writer.execute("update orders set total = total + 1 where id = $1", key)


async def fill_queue(writer: asyncpg.Connection) -> float:
    """Fill half of PostgreSQL's queue with what a listener is not going to read."""
    await writer.execute(
        "select pg_notify('filler', repeat('x', 7000) || n) from generate_series(1, 40) as n"
    )
    used: float = await writer.fetchval("select pg_notification_queue_usage()")
    return used


async def test_above_half_a_queue_triggers_go_quiet_and_waits_poll_until_it_is_read(
    small: EmbeddedPostgres,
) -> None:
    if int(small.version.partition(".")[0]) < 17:
        pytest.skip("PostgreSQL's queue has a fixed size of 8 GB before 17")
    async with (
        shop_on(small) as engine,
        connected(engine) as writer,
        connected(engine) as stuck,
        Listener(engine, timings=QUICK) as listener,
    ):
        await install_triggers(engine, [Order])
        wait = begin_wait(engine, Order, 1, interval=0.05)
        await until_mode(engine, "armed")
        async with listening(engine, "orders") as hint_listener:
            await stuck.execute("listen filler")
            await stuck.execute("begin; select 1")
            assert await fill_queue(writer) > 0.5
            await pay(writer, 2)
            assert await hint_listener.said() == []
            await until_listening(engine, "polling")
            assert "queue is 6" in (listener.state.reason or "")
            await pay(writer)
            assert (await wait).total == 1
            findings = {finding.subject: finding for finding in await diagnose(engine)}
            assert findings["queue"].severity is Severity.ERROR
            await stuck.execute("rollback")
            await until_listening(engine, "listening")
        again = begin_wait(engine, Order, 1)
        await until_mode(engine, "armed")
        await pay(writer)
        assert (await again).total == 2


async def prepare(writer: asyncpg.Connection) -> None:
    """Write in the first half of a two-phase commit; then finish it."""
    await writer.execute("begin")
    try:
        await pay(writer)
        await writer.execute("prepare transaction 'half'")
    except asyncpg.PostgresError:
        await writer.execute("rollback")
        raise
    await writer.execute("commit prepared 'half'")


async def test_two_phase_commits_fail_while_a_process_waits_for_hints(
    small: EmbeddedPostgres,
) -> None:
    async with shop_on(small) as engine, connected(engine) as writer:
        await install_triggers(engine, [Order])
        await prepare(writer)
        async with listening(engine, "orders"):
            with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
                await prepare(writer)
        await prepare(writer)
        findings = [finding.subject for finding in await diagnose(engine)]
        assert "two-phase commits" in findings


async def test_two_phase_commits_of_a_log_that_never_notifies_always_work(
    small: EmbeddedPostgres,
) -> None:
    async with shop_on(small) as engine, connected(engine) as writer:
        await install_triggers(engine, [Order], log=True)
        async with listening(engine) as hint_listener:
            await hint_listener.arm()
            with pytest.raises(asyncpg.FeatureNotSupportedError, match="NOTIFY"):
                await prepare(writer)
            await install_triggers(engine, [Order], log=True, notify=False)
            await prepare(writer)
        logged = await writer.fetchval("select count(*) from rowsignal.change")
        assert logged == 1
        findings = [finding.subject for finding in await diagnose(engine)]
        assert "two-phase commits" not in findings
        wait = begin_wait(engine, Order, 1, interval=0.05)
        await until_mode(engine, "polling")
        await prepare(writer)
        assert (await wait).total == 2


class Shelf(DeclarativeBase):
    pass


def shelf(number: int) -> type[Any]:
    return type(
        f"Shelf{number}",
        (Shelf,),
        {
            "__tablename__": f"shelf_{number}",
            "__annotations__": {"id": Mapped[int], "books": Mapped[int]},
            "id": mapped_column(primary_key=True),
            "books": mapped_column(),
        },
    )


async def test_any_number_of_armed_tables_takes_128_locks_at_most(engine: AsyncEngine) -> None:
    shelves = [shelf(number) for number in range(MANY)]
    async with engine.begin() as connection:
        await connection.run_sync(Shelf.metadata.create_all)
        for number in range(MANY):
            await connection.execute(text(f"insert into shelf_{number} values (1, 0)"))
    await install_triggers(engine, Shelf)
    Dispatcher.of(engine, NOTIFIED_ONLY)
    waits = [begin_wait(engine, one, 1) for one in shelves]
    for one in shelves:
        await until_mode(engine, "armed", table=one.__tablename__)
    async with connected(engine) as writer:
        locks = await writer.fetch(
            "select pid, count(*) from pg_locks where locktype = 'advisory' and classid = $1"
            " and database = (select oid from pg_database where datname = current_database())"
            " group by pid",
            LOCK_CLASS,
        )
        assert len(locks) == 1, "one connection listens"
        assert 64 < locks[0]["count"] <= 128
        for number in range(MANY):
            await writer.execute(f"update shelf_{number} set books = 1")
    assert {found.books for found in await asyncio.gather(*waits)} == {1}
    await close_listener(engine)


@dataclass(frozen=True)
class Replicated:
    """Two shops on one server: what is written to the orders of one is applied to the other's."""

    source: AsyncEngine
    target: AsyncEngine
    writer: asyncpg.Connection  # to the source
    owner: asyncpg.Connection  # of the target


@asynccontextmanager
async def replicated(server: EmbeddedPostgres) -> AsyncIterator[Replicated]:
    async with (
        shop_on(server) as source,
        shop_on(server) as target,
        connected(source) as publisher,
        connected(target) as subscriber,
    ):
        name = database_of(target)
        await publisher.execute("create publication shop for table orders")
        # of the same server: making the slot would wait for the subscriber's own transaction
        await publisher.fetchval("select pg_create_logical_replication_slot($1, 'pgoutput')", name)
        host = server.dsn.partition("host=")[2].partition("&")[0]
        await subscriber.execute(
            f"create subscription {name} connection"
            f" 'host={host} user=postgres dbname={database_of(source)}'"
            f" publication shop with (create_slot = false, copy_data = false)"
        )
        try:
            yield Replicated(source, target, publisher, subscriber)
        finally:
            await subscriber.execute(f"alter subscription {name} disable")
            await subscriber.execute(f"alter subscription {name} set (slot_name = none)")
            await subscriber.execute(f"drop subscription {name}")
            await drop_slot(publisher, name)


async def drop_slot(publisher: asyncpg.Connection, name: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await publisher.fetchval("select pg_drop_replication_slot($1)", name)
            except asyncpg.ObjectInUseError:
                await asyncio.sleep(0.02)
            else:
                return


async def test_rows_that_replication_applies_wake_waits_once_the_trigger_is_always_enabled(
    small: EmbeddedPostgres,
) -> None:
    async with replicated(small) as both:
        target, writer, owner = both.target, both.writer, both.owner
        await install_triggers(target, [Order])
        Dispatcher.of(target, READ_OFTEN)
        seen = begin_wait(target, Order, 1)
        await until_mode(target, "armed")
        await pay(writer)
        assert (await seen).total == 1
        assert Dispatcher.of(target).listener.state.notifications == 0, "the safety look saw it"
        await close_listener(target)

        await owner.execute("alter table orders enable always trigger rowsignal_hint")
        Dispatcher.of(target, NOTIFIED_ONLY)
        woken = begin_wait(target, Order, 1)
        await until_mode(target, "armed")
        await pay(writer)
        assert (await woken).total == 2
        (status,) = await trigger_status(target, [Order])
        assert status.state == "installed"


async def test_the_doctor_says_that_what_replication_applies_is_not_logged_and_how_hints_are(
    small: EmbeddedPostgres,
) -> None:
    async with replicated(small) as both:
        target, owner = both.target, both.owner
        await install_triggers(target, [Order], log=True)
        await pay(both.writer)
        await until_paid(owner)
        assert await owner.fetchval("select count(*) from rowsignal.change") == 0
        (logged,) = await about(target, "orders")
        assert (logged.severity, "is not logged" in logged.message) == (Severity.WARNING, True)
        assert database_of(target) in logged.message, "the subscription"

        await install_triggers(target, [Order])
        (hinted,) = await about(target, "orders")
        assert (hinted.severity, "wakes no reader" in hinted.message) == (Severity.WARNING, True)
        await owner.execute(hinted.fix or "")
        assert await about(target, "orders") == []
        assert await about(both.source, "orders") == []


async def test_every_role_may_read_what_subscriptions_write(small: EmbeddedPostgres) -> None:
    async with replicated(small) as both:
        target = both.target
        await install_triggers(target, [Order], log=True)
        role = f"guest_{database_of(target)}"
        await both.owner.execute(f"create role {role} login")
        guest = create_async_engine(target.url.set(username=role))
        assert [finding.severity for finding in await about(guest, "orders")] == ["warning"]
        await guest.dispose()


async def about(engine: AsyncEngine, subject: str) -> list[Finding]:
    return [finding for finding in await diagnose(engine) if finding.subject == subject]


async def until_paid(reader: asyncpg.Connection) -> None:
    async with asyncio.timeout(30):
        while not await reader.fetchval("select sum(total) from orders"):
            await asyncio.sleep(0.01)


async def test_installing_again_keeps_a_trigger_that_is_always_enabled(engine: AsyncEngine) -> None:
    await open_shop(engine)
    await install_triggers(engine, [Order])
    async with connected(engine) as owner:
        await owner.execute("alter table orders enable always trigger rowsignal_hint")
        await install_triggers(engine, [Order], columns=["status"])
        enabled = await owner.fetchval(
            "select tgenabled from pg_trigger where tgname = 'rowsignal_hint'"
        )
    assert enabled == b"A"


REVOKE = "revoke execute on function pg_catalog.pg_try_advisory_lock(int, int) from public"


async def test_writers_who_may_not_try_locks_fail_and_the_doctor_says_so(
    engine: AsyncEngine,
) -> None:
    await open_shop(engine)
    await install_triggers(engine, [Order])
    role = f"clerk_{database_of(engine)}"
    async with connected(engine) as owner, connected(engine) as clerk:
        await owner.execute(f"create role {role}; grant all on orders to {role}")
        try:
            await clerk.execute(f"set role {role}")
            await pay(clerk)
            await owner.execute(REVOKE)
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="pg_try_advisory_lock"):
                await pay(clerk)
            errors = [f for f in await diagnose(engine) if f.severity is Severity.ERROR]
            (error,) = errors
            assert "writes of watched tables fail" in error.message
            assert error.fix is not None
            with pytest.raises(TriggerInstallError, match="every write would fail"):
                await install_triggers(engine, ["customers"])
            await owner.execute(error.fix)
            await pay(clerk)
            await install_triggers(engine, ["customers"])
        finally:
            await owner.execute(f"drop owned by {role}; drop role {role}")
