"""One reading of the log for all: asleep when quiet, exact for each, slow readers on their own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import ChangeLog
from rowsignal.change_log import log as change_log
from rowsignal.change_log import reader as log_reader
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Reset
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import PositionError, SchemaVersionError
from rowsignal.listener import Listener, Timings
from rowsignal.listener.pacing import Pace
from support.change_log import Shop, ids
from support.proxy import Proxy, proxied

ITEM = ("public", "item")


@pytest.fixture
async def tail(shop: Shop) -> AsyncIterator[LogTail]:
    async with Listener(shop.engine) as listener:
        tail = LogTail(listener, Pace(idle_timeout=0.0), safety=0.5)
        yield tail
        await until(lambda: tail.mode == "stopped")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)


async def take(changes: LogSubscription, count: int) -> list[int | None]:
    """Return the keys of the next `count` changes."""
    seen: list[int | None] = []
    async with asyncio.timeout(30):
        while len(seen) < count:
            seen += ids(await anext(changes))
    return seen


async def test_changes_arrive_while_the_log_is_armed(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        await until(lambda: tail.mode == "armed")
        await shop.insert(1, 2)
        assert await take(changes, 2) == [1, 2]
        await shop.insert(3)
        assert await take(changes, 1) == [3]
        assert tail.mode == "armed"


async def test_a_writer_from_before_the_arming_is_settled(shop: Shop, tail: LogTail) -> None:
    transaction = shop.sql.transaction()
    await transaction.start()
    await shop.sql.execute("insert into item values (1, 0)")
    async with tail.subscribe([ITEM]) as changes:
        await until(lambda: tail.mode == "settling")
        await transaction.commit()
        assert await take(changes, 1) == [1]
        await until(lambda: tail.mode == "armed")


async def test_a_busy_log_is_polled_instead(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        await until(lambda: tail.mode == "armed")
        count = 0
        async with asyncio.timeout(30):
            while tail.mode != "busy":
                await shop.insert(count)
                count += 1
        locks = "select count(*) from pg_locks where locktype = 'advisory' and objid = 1000"
        assert await shop.sql.fetchval(locks) == 0, "writers need not notify now"
        assert await take(changes, count) == list(range(count))
        await until(lambda: tail.mode == "armed")


async def test_subscribers_join_each_at_their_own_position(shop: Shop, tail: LogTail) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2, 3)
    batch = await shop.read(start)
    places = [start, *(change.position for change in batch.changes)]
    async with AsyncExitStack() as stack:
        readers = [
            await stack.enter_async_context(tail.subscribe([ITEM], after=place)) for place in places
        ]
        late = await stack.enter_async_context(tail.subscribe([ITEM]))
        await shop.insert(4)
        for skipped, reader in enumerate(readers):
            assert await take(reader, 4 - skipped) == [1, 2, 3, 4][skipped:]
        assert await take(late, 1) == [4]


async def test_a_slow_subscriber_catches_up_by_itself(shop: Shop, tail: LogTail) -> None:
    async with (
        tail.subscribe([ITEM], limit=5) as slow,
        tail.subscribe([ITEM]) as quick,
    ):
        for number in range(20):
            await shop.insert(number)
            assert await take(quick, 1) == [number]
        assert slow.is_behind
        assert tail.subscribers == 1, "a subscription without reader is not kept"
        assert await take(slow, 20) == list(range(20))
        await shop.insert(20)
        assert await take(slow, 1) == [20]
        await shop.insert(21)
        assert await take(slow, 1) == [21]
        assert not slow.is_behind


async def test_subscribers_see_their_tables_only(shop: Shop, tail: LogTail) -> None:
    await shop.sql.execute("create table other (id integer primary key)")
    await shop.capture("public.other")
    async with (
        tail.subscribe([ITEM]) as items,
        tail.subscribe([("public", "other")]) as others,
        tail.subscribe([ITEM, ("public", "other")]) as both,
    ):
        await shop.insert(1)
        await shop.sql.execute("insert into other values (2)")
        await shop.insert(3)
        assert await take(both, 3) == [1, 2, 3]
        assert await take(others, 1) == [2]
        assert await take(items, 2) == [1, 3]


async def test_the_position_advances_though_nothing_changes(shop: Shop, tail: LogTail) -> None:
    await shop.sql.execute("create table unlogged_one (id integer)")
    async with tail.subscribe([ITEM]) as changes:
        before = changes.position
        await shop.sql.execute("insert into unlogged_one values (1)")
        async with asyncio.timeout(30):
            batch = await anext(changes)
        assert ids(batch) == []
        assert changes.position == batch.position != before


async def test_catch_up_includes_everything_from_before_it(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        await shop.insert(1)
        position = await tail.catch_up()
        assert ids(await shop.read(position)) == []
        assert await take(changes, 1) == [1]


async def test_the_log_is_followed_through_lost_connections(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        for number in range(3):
            await shop.sql.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity"
                " where datname = current_database() and pid <> pg_backend_pid()"
            )
            await shop.insert(number)
            assert await take(changes, 1) == [number]


async def test_a_gap_is_said(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        await shop.sql.execute("delete from rowsignal.incarnation")
        await tail.catch_up()
        async with asyncio.timeout(30):
            assert isinstance(await anext(changes), Reset)
        await shop.insert(1)
        assert await take(changes, 1) == [1]


async def test_a_gap_that_a_slow_subscriber_falls_into_is_said(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM], limit=1) as changes:
        await shop.insert(1, 2)
        await tail.catch_up()
        assert changes.is_behind
        await shop.sql.execute("delete from rowsignal.change")
        await shop.sql.execute("update rowsignal.horizon set snapshot = pg_current_snapshot()")
        async with asyncio.timeout(30):
            assert isinstance(await anext(changes), Reset)
        await shop.insert(3)
        assert await take(changes, 1) == [3]


async def test_a_tail_that_has_just_stopped_starts_again(shop: Shop, tail: LogTail) -> None:
    for number in range(5):
        async with tail.subscribe([ITEM]) as changes:
            await shop.insert(number)
            assert await take(changes, 1) == [number]
        await asyncio.sleep(0)  # lets the last one's end begin


async def test_a_subscription_never_waits_for_a_tail_that_lives_on(shop: Shop) -> None:
    loop = asyncio.get_running_loop()
    tail = LogTail(Listener.of(shop.engine), safety=0.002)  # its pauses end all the time
    attempts: list[asyncio.Task[None]] = []

    async def attempt() -> None:
        async with tail.subscribe([ITEM]):
            pass

    async with tail.subscribe([ITEM]):
        started = loop.time()
        for number in range(4000):  # at every moment of a pause, its end included
            moment = started + number / 4000
            loop.call_at(moment, lambda: attempts.append(loop.create_task(attempt())))
        async with asyncio.timeout(60):
            while len(attempts) < 4000:
                await asyncio.sleep(0.01)
            await asyncio.gather(*attempts)
    await tail.aclose()


async def test_readers_get_an_error_at_the_end(shop: Shop, tail: LogTail) -> None:
    async with tail.subscribe([ITEM]) as changes:
        await tail.aclose()
        with pytest.raises(RuntimeError, match="no longer followed"):
            await take(changes, 1)


async def test_without_notifications_the_log_is_polled(shop: Shop) -> None:
    tail = LogTail(Listener(shop.engine, listen_url="postgresql+asyncpg://nobody@127.0.0.1:9/x"))
    tail.log = shop.log  # the log itself can be reached
    async with tail.subscribe([ITEM]) as changes:
        await shop.insert(1)
        assert await take(changes, 1) == [1]
        assert tail.mode == "polling"
    await tail.aclose()


async def test_what_keeps_the_log_from_being_read_is_raised(shop: Shop, tail: LogTail) -> None:
    with pytest.raises(PositionError):
        async with tail.subscribe([ITEM], after="nonsense"):
            pass
    await shop.sql.execute("drop schema rowsignal cascade")
    with pytest.raises(SchemaVersionError):
        async with tail.subscribe([ITEM]):
            pass


@asynccontextmanager
async def impatient(
    server: EmbeddedPostgres, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Proxy, AsyncEngine]]:
    """Provide an engine whose network can fail, and a log that soon gives up waiting for it."""
    for module in (log_reader, change_log):
        monkeypatch.setattr(module, "ANSWER", 0.5)
    folder = server.dsn.partition("host=")[2]
    async with proxied(f"{folder}/.s.PGSQL.5432") as proxy:
        place = f"127.0.0.1:{proxy.port}/{shop.engine.url.database}"
        engine = create_async_engine(f"postgresql+asyncpg://postgres@{place}")
        yield proxy, engine
        await engine.dispose()


async def test_connections_that_died_without_a_word_are_replaced(
    server: EmbeddedPostgres, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Say, the server's machine is gone: no packet resets the connection; TCP waits 15 min."""
    timings = Timings(canary=0.3, query_timeout=0.5)
    async with (
        impatient(server, shop, monkeypatch) as (proxy, engine),
        Listener(engine, timings=timings) as listener,
    ):
        tail = LogTail(listener, Pace(idle_timeout=0.0), safety=0.2)
        async with tail.subscribe([ITEM]) as changes:
            await until(lambda: tail.mode == "armed")
            proxy.abandon()
            await shop.insert(1)
            assert await take(changes, 1) == [1]
            await until(lambda: tail.mode == "armed")
            await shop.insert(2)
            assert await take(changes, 1) == [2]
        await until(lambda: tail.mode == "stopped")


async def test_a_question_on_a_dead_connection_is_given_up_and_asked_on_another(
    server: EmbeddedPostgres, shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        impatient(server, shop, monkeypatch) as (proxy, engine),
        ChangeLog(engine) as log,
    ):
        assert await log.writers() == frozenset()
        proxy.abandon()
        with pytest.raises(TimeoutError):
            await log.writers()
        assert await log.writers() == frozenset()
