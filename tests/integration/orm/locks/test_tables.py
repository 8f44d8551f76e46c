# ruff: noqa: PT012 -- the block under test is what raises
import asyncio
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, event, make_url, select, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.exceptions import DeadlockError, LockTimeoutError, PoolExhaustedError
from rowsignal.orm.locks.durations import seconds
from rowsignal.orm.locks.tables import LockMode, lock_tables


class Base(DeclarativeBase):
    pass


class Widget(Base):
    __tablename__ = "widgets"
    id: Mapped[int] = mapped_column(primary_key=True)


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)


class Engineer(Person):
    __tablename__ = "engineers"
    id: Mapped[int] = mapped_column(ForeignKey("people.id"), primary_key=True)


class TenantWidget(Base):
    __table__ = Table(
        "widgets", Base.metadata, Column("id", Integer, primary_key=True), schema="tenant"
    )


class Odd(Base):
    __tablename__ = 'odd "name; Order'
    id: Mapped[int] = mapped_column(primary_key=True)


Maker = async_sessionmaker[AsyncSession]


@pytest.fixture
async def maker(engine: AsyncEngine) -> Maker:
    async with engine.begin() as connection:
        await connection.execute(text("create schema tenant"))
        await connection.run_sync(Base.metadata.create_all)
    return async_sessionmaker(engine)


async def locks(session: AsyncSession) -> dict[str, str]:
    """The table locks that the session's transaction holds, except those of reading."""
    query = text(
        "select n.nspname || '.' || c.relname, l.mode from pg_locks l"
        " join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace"
        " where l.pid = pg_backend_pid() and c.relkind = 'r' and l.mode <> 'AccessShareLock'"
    )
    return dict(tuple(row) for row in await session.execute(query))


async def lock_timeout(session: AsyncSession) -> str:
    return str(await session.scalar(text("show lock_timeout")))


async def test_every_mode_in_either_spelling(maker: Maker) -> None:
    query = text("select mode from pg_locks where relation = 'widgets'::regclass")
    for mode in LockMode:
        for spelling in (mode, mode.value, mode.name, mode.name.lower()):
            async with maker() as session, lock_tables(session, [Widget], mode=spelling):
                held = str(await session.scalar(query))
            assert held == mode.value.title().replace(" ", "") + "Lock"


async def test_an_unknown_mode_is_refused_with_the_known_ones(maker: Maker) -> None:
    async with maker() as session:
        with pytest.raises(ValueError, match="ACCESS EXCLUSIVE"):
            async with lock_tables(session, [Widget], mode="SHARE MODE; DROP TABLE widgets"):
                pass


async def test_models_and_tables_are_locked_in_the_schema_they_name(maker: Maker) -> None:
    tables = [TenantWidget, Person.__table__, Odd]
    async with maker() as session, lock_tables(session, tables) as same:
        assert same is session
        held = await locks(session)
    assert set(held) == {"tenant.widgets", "public.people", 'public.odd "name; Order'}
    assert set(held.values()) == {"ShareUpdateExclusiveLock"}


@pytest.mark.parametrize("model", [Person, Engineer])
async def test_joined_inheritance_is_locked_as_a_whole(maker: Maker, model: type[Person]) -> None:
    async with maker() as session, lock_tables(session, [model]):
        assert set(await locks(session)) == {"public.people", "public.engineers"}


async def test_schemas_are_translated(engine: AsyncEngine, maker: Maker) -> None:
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    async with AsyncSession(translated) as session, lock_tables(session, [Widget]):
        assert set(await locks(session)) == {"tenant.widgets"}


@pytest.mark.parametrize("nothing", [[], ()])
async def test_nothing_to_lock_is_refused(maker: Maker, nothing: Any) -> None:
    async with maker() as session:
        with pytest.raises(ValueError, match="empty"):
            async with lock_tables(session, nothing):
                pass


async def test_what_is_no_table_is_refused(maker: Maker) -> None:
    async with maker() as session:
        with pytest.raises(TypeError, match="'widgets' is neither"):
            async with lock_tables(session, ["widgets"]):
                pass


async def test_one_owner_of_the_locks_is_needed(maker: Maker) -> None:
    with pytest.raises(TypeError, match="not both"):
        async with lock_tables(tables=[Widget]):
            pass


@pytest.mark.parametrize("timeout", [0.05, "50ms", timedelta(milliseconds=50)])
async def test_a_lock_that_is_not_granted_names_the_tables_and_the_time(
    maker: Maker, timeout: Any
) -> None:
    async with maker() as holder, maker() as session, lock_tables(holder, [Widget]):
        with pytest.raises(LockTimeoutError, match=r"people, widgets .* 0\.05 s"):
            async with lock_tables(session, [Widget, Person], timeout=timeout):
                pass


async def test_another_drivers_errors_are_understood_too(database_url: str, maker: Maker) -> None:
    psycopg = create_async_engine(make_url(database_url).set(drivername="postgresql+psycopg"))
    async with maker() as holder, lock_tables(holder, [Widget]), AsyncSession(psycopg) as session:
        with pytest.raises(LockTimeoutError, match=r"widgets .* 0\.05 s"):
            async with lock_tables(session, [Widget], timeout="50ms"):
                pass
    await psycopg.dispose()


async def test_none_leaves_the_servers_bound(maker: Maker) -> None:
    async with maker() as holder, maker() as session:
        await session.execute(text("set local lock_timeout = '30ms'"))
        async with lock_tables(holder, [Widget]):
            with pytest.raises(LockTimeoutError, match="the server's lock_timeout"):
                async with lock_tables(session, [Widget], timeout=None):
                    pass


async def test_a_whole_number_means_seconds(maker: Maker) -> None:
    assert seconds(5) == seconds("5s") == seconds(timedelta(seconds=5)) == 5.0


@pytest.mark.parametrize("timeout", ["5s'; drop table widgets; --", "soon", -1, float("nan")])
async def test_what_is_no_time_is_refused_before_anything_is_sent(
    maker: Maker, timeout: Any
) -> None:
    async with maker() as session:
        with pytest.raises(ValueError, match="length of time"):
            async with lock_tables(session, [Widget], timeout=timeout):
                pass
        assert not session.in_transaction()


async def test_the_callers_lock_timeout_holds_in_the_block_and_after_it(maker: Maker) -> None:
    async with maker() as session:
        await session.execute(text("set local lock_timeout = '77s'"))
        async with lock_tables(session, [Widget], timeout=1):
            assert await lock_timeout(session) == "77s"
        assert await lock_timeout(session) == "77s"
        await session.commit()
        assert await lock_timeout(session) == "0"


async def test_a_timeout_leaves_the_callers_transaction_usable(
    engine: AsyncEngine, maker: Maker
) -> None:
    async with maker() as holder, maker() as session:
        session.add(Person(id=1))
        await session.flush()
        async with lock_tables(holder, [Widget]):
            with pytest.raises(LockTimeoutError):
                async with lock_tables(session, [Widget], timeout=0.01):
                    pass
        assert await lock_timeout(session) == "0"
        await session.commit()
    async with engine.connect() as connection:
        assert await connection.scalar(text("select count(*) from people")) == 1


async def test_without_a_transaction_the_locks_end_with_the_block(maker: Maker) -> None:
    async with maker() as session, maker() as other:
        async with lock_tables(session, [Widget]):
            session.add(Person(id=1))
        async with lock_tables(other, [Widget], timeout=0.01):
            assert len(list(await other.scalars(select(Person)))) == 1


async def test_inside_a_transaction_the_locks_last_until_the_caller_commits(maker: Maker) -> None:
    async with maker() as session, maker() as other:
        await session.execute(select(1))
        async with lock_tables(session, [Widget]):
            pass
        with pytest.raises(LockTimeoutError):
            async with lock_tables(other, [Widget], timeout=0.01):
                pass
        await session.commit()
        async with lock_tables(other, [Widget], timeout=0.01):
            pass


async def test_owner_may_be_named_after_an_empty_first_argument(maker: Maker) -> None:
    async with maker() as session:
        async with lock_tables(None, [Widget], session=session) as own:
            assert own is session
        async with lock_tables(None, [Widget], session_maker=maker) as own:
            assert own is not session
        for owners in ({}, {"session": session, "session_maker": maker}):
            with pytest.raises(TypeError, match="not both"):
                await lock_tables(None, [Widget], **owners).__aenter__()
        with pytest.raises(TypeError, match="not both"):
            await lock_tables(session, [Widget], session=session).__aenter__()


@pytest.mark.parametrize("keyword", [True, False])
async def test_a_sessionmaker_gives_the_block_a_transaction_of_its_own(
    maker: Maker, keyword: bool
) -> None:
    owner = {"session_maker": maker} if keyword else {"session": maker}
    async with lock_tables(**owner, tables=[Widget]) as session:
        session.add(Person(id=1))
    async with lock_tables(maker, [Widget], timeout=0.01) as session:
        assert len(list(await session.scalars(select(Person)))) == 1


async def test_a_sessionmakers_block_that_fails_is_rolled_back(maker: Maker) -> None:
    with pytest.raises(ZeroDivisionError):
        async with lock_tables(maker, [Widget]) as session:
            session.add(Person(id=1))
            raise ZeroDivisionError
    async with lock_tables(maker, [Widget], timeout=0.01) as session:
        assert list(await session.scalars(select(Person))) == []


async def test_opposite_orders_do_not_deadlock(maker: Maker) -> None:
    async def lock(*tables: Any) -> None:
        async with lock_tables(maker, tables, mode="EXCLUSIVE", timeout=10):
            pass

    async with maker() as holder:
        await holder.execute(text("lock table widgets, people in exclusive mode"))
        tasks = [
            asyncio.create_task(lock(Widget, Person)),
            asyncio.create_task(lock(Person, Widget)),
        ]
        await until_waiting(maker, len(tasks))
    # Both go on at once now; each in its own order, they would hold what the other wants
    await asyncio.gather(*tasks)


async def until_waiting(maker: Maker, number: int) -> None:
    query = text("select count(*) from pg_locks where locktype = 'relation' and not granted")
    async with asyncio.timeout(30), maker() as session:
        while await session.scalar(query) != number:
            await session.rollback()


async def test_a_deadlock_with_another_order_is_an_error_of_its_own(maker: Maker) -> None:
    async with maker() as first, maker() as second:
        await first.execute(text("set local deadlock_timeout = '20ms'"))
        await second.execute(text("set local deadlock_timeout = '60s'"))
        await second.execute(text("lock table widgets in exclusive mode"))
        await first.execute(text("lock table people in exclusive mode"))
        waiting = asyncio.create_task(second.execute(text("lock table people in exclusive mode")))
        with pytest.raises(DeadlockError, match="widgets"):
            async with lock_tables(first, [Widget], mode="EXCLUSIVE"):
                pass
        await first.rollback()
        await waiting


async def test_a_timeout_of_the_blocks_own_is_not_called_an_exhausted_pool(maker: Maker) -> None:
    with pytest.raises(TimeoutError) as caught:
        async with lock_tables(maker, [Widget]):
            raise TimeoutError
    assert type(caught.value) is TimeoutError


async def test_an_exhausted_pool_is_an_error_of_its_own(database_url: str, maker: Maker) -> None:
    small = create_async_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    async with small.connect():
        with pytest.raises(PoolExhaustedError):
            async with lock_tables(async_sessionmaker(small), [Widget]):
                pass
    await small.dispose()


async def test_all_tables_are_locked_in_one_statement(engine: AsyncEngine, maker: Maker) -> None:
    metadata = MetaData()
    tables = [Table(name, metadata, Column("id", Integer)) for name in ("b", "a", "c")]
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    sent: list[str] = []

    async with maker() as session:
        connection = await session.connection()
        event.listen(
            connection.sync_connection,
            "before_cursor_execute",
            lambda *arguments: sent.append(arguments[2]),
        )
        async with lock_tables(session, tables, mode=LockMode.SHARE):
            pass
    assert [s for s in sent if s.startswith("LOCK")] == ["LOCK TABLE a, b, c IN SHARE MODE"]
