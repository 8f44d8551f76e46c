"""Where handlers may run: behind a pooler, on a promoted standby, on a log that was restored."""

import asyncio

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.changes import Change
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.handlers import ChangeHandlers, ConsumerReset, consumer_lag, skip_failing
from rowsignal.triggers import install_triggers
from support.change_log import connect
from support.handlers import (
    AT_ONCE,
    Effect,
    Task,
    effects,
    make_tables,
    record,
    recording,
    until_handled,
    until_lag,
    write,
)
from support.pgbouncer import pgbouncer, pooled, settings_in_pool
from support.standby import base_backup
from support.waits import close_listener

pytestmark = pytest.mark.usefixtures("tables")


async def test_behind_a_pooler(engine: AsyncEngine, server: EmbeddedPostgres) -> None:
    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        if change.key == {"id": 2}:
            raise RuntimeError("two")

    async with pgbouncer(server) as port, pooled(port, engine) as bounced:
        await write(engine, 1, 2, 3)
        async with recording(bounced, handler=handler, partitions=2):
            await until_handled(engine, 2)
            for task in range(4, 9):
                await write(engine, task)
            await until_handled(engine, 7)
        lags = await consumer_lag(bounced)
        assert sum(lag.handled for lag in lags) == 7
        assert sum(lag.dead_letters for lag in lags) == 1
        assert await skip_failing(bounced, "recorder") == 0
        name = "idle_in_transaction_session_timeout"
        assert await settings_in_pool(port, engine.url.database or "", name) == {("0",)}
        await close_listener(bounced)


async def test_an_engine_in_autocommit_has_transactions_all_the_same(engine: AsyncEngine) -> None:
    automatic = create_async_engine(engine.url, isolation_level="AUTOCOMMIT")

    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        if change.key == {"id": 1}:
            raise RuntimeError("one")

    await write(engine, 1, 2)
    async with recording(automatic, handler=handler):
        await until_handled(engine, 1)
    assert await effects(engine) == [(2, 0)]
    await close_listener(automatic)
    await automatic.dispose()


async def test_a_serializable_handler_may_take_longer_than_its_lease(engine: AsyncEngine) -> None:
    strict = create_async_engine(engine.url, isolation_level="SERIALIZABLE")
    renewals: list[float] = []

    async def handler(session: AsyncSession, change: Change) -> None:
        await record(session, change)
        await session.flush()
        query = sa.text("select extract(epoch from max(alive_until)) from rowsignal.worker")
        while len(set(renewals)) < 5:  # the lease is renewed while this transaction is open
            async with engine.connect() as connection:
                renewals.append(float(await connection.scalar(query) or 0))
            await asyncio.sleep(0.02)

    await write(engine, 1, 2)
    async with recording(strict, handler=handler, lease=0.6):
        await until_handled(engine, 2)
    (lag,) = await consumer_lag(engine)
    assert (lag.dead_letters, lag.error, lag.handled) == (0, None, 2)
    await close_listener(strict)
    await strict.dispose()


async def test_sessions_are_made_as_the_application_makes_them(engine: AsyncEngine) -> None:
    class Session(AsyncSession):
        """The application's own."""

    seen: list[type] = []
    sessions = async_sessionmaker(engine, class_=Session, info={"a": 1})
    changes = ChangeHandlers(engine, session_maker=sessions)

    @changes.on(Task, start="beginning")
    async def handler(session: AsyncSession, change: Change) -> None:
        assert session.info == {"a": 1}
        seen.append(type(session))
        await record(session, change)

    await write(engine, 1)
    async with changes:
        await until_handled(engine, 1)
    assert seen == [Session]


class Elsewhere(DeclarativeBase):
    pass


class Note(Elsewhere):
    __tablename__ = "notes"
    __table_args__ = {"schema": "template"}  # noqa: RUF012 -- as SQLAlchemy wants it

    id: Mapped[int] = mapped_column(primary_key=True)


async def test_schemas_are_translated(engine: AsyncEngine) -> None:
    connection = await connect(engine)
    await connection.execute("create schema tenant; create table tenant.notes (id int primary key)")
    await connection.close()
    await install_triggers(engine, "tenant.notes", log=True, row_values=True)
    translated = engine.execution_options(schema_translate_map={"template": "tenant"})
    changes = ChangeHandlers(translated)

    @changes.on(Note)
    async def handler(session: AsyncSession, change: Change) -> None:
        note = await session.get_one(Note, change.row["id"] if change.row else 0)
        session.add(Effect(task_id=note.id, step=0))

    async with changes:
        async with translated.begin() as connected:
            await connected.execute(sa.insert(Note).values(id=5))
        await until_handled(engine, 1)
    await close_listener(translated)


async def test_a_promoted_standby_goes_on_where_its_primary_was() -> None:
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        await make_tables(engine)
        async with recording(engine):
            await write(engine, 1)
            await until_handled(engine, 1)
        await write(engine, 2)
        copy = await asyncio.to_thread(base_backup, server)
        with EmbeddedPostgres(data_dir=copy) as standby:
            replica = create_async_engine(standby.url)
            connection = await connect(replica)
            assert await connection.fetchval("select pg_promote()")
            await connection.close()
            async with recording(replica):
                await until_handled(replica, 2)
                await write(replica, 3)
                await until_handled(replica, 3)
            assert await effects(replica) == [(1, 0), (2, 0), (3, 0)]
            assert [lag.resets for lag in await consumer_lag(replica)] == [0]
            await close_listener(replica)
            await replica.dispose()
        await close_listener(engine)
        await engine.dispose()


async def test_a_dump_that_is_restored_elsewhere_is_a_reset(
    engine: AsyncEngine, server: EmbeddedPostgres
) -> None:
    async with recording(engine):
        await write(engine, 1)
        await until_handled(engine, 1)
    await write(engine, 2)
    restored = create_async_engine(engine.url.set(database="restored_consumer"))
    host, source = server.dsn.partition("host=")[2], engine.url.database or ""
    connection = await connect(engine)
    await connection.execute("create database restored_consumer")
    dump, load = (str(server.bin_dir / name) for name in ("pg_dump", "psql"))
    there = ["-h", host, "-U", "postgres", "-d"]
    dumping = await asyncio.create_subprocess_exec(dump, *there, source, stdout=-1)
    script, _ = await dumping.communicate()
    loading = await asyncio.create_subprocess_exec(
        load, *there, "restored_consumer", "-q", "-v", "ON_ERROR_STOP=1", stdin=-1, stdout=-3
    )
    await loading.communicate(script)
    assert (dumping.returncode, loading.returncode) == (0, 0)
    told: list[str] = []
    changes = ChangeHandlers(restored)
    changes.on(Task, name="recorder", retry=AT_ONCE)(record)

    @changes.on_reset
    async def hook(session: AsyncSession, reset: ConsumerReset) -> None:
        told.append(reset.reason)

    async with changes:
        await until_lag(restored, lambda lag: lag.resets == 1)
        await write(restored, 3)
        await until_handled(restored, 2)
    assert told == ["Changes are missing: the log was made anew or restored from a dump."]
    assert await effects(restored) == [(1, 0), (3, 0)]
    await close_listener(restored)
    await restored.dispose()
    await connection.execute("drop database restored_consumer with (force)")
    await connection.close()
