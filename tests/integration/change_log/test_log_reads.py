"""The one statement that most looks at the log are, and when it is not asked."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.change_log import ChangeLog
from rowsignal.change_log.quick_reader import window_statement
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.postgres.connections import is_direct
from support.change_log import Shop, ids
from support.pgbouncer import pgbouncer, pooled, settings_in_pool


async def test_an_ordinary_read_is_one_statement_in_its_own_transaction(shop: Shop) -> None:
    position = (await shop.read(await shop.log.position())).position
    sent: list[str] = []
    driver = await shop.log._quick._open()
    assert driver is not None
    with driver.query_logger(lambda record: sent.append(record.query)):
        await shop.insert(1)
        assert ids(await shop.read(position, tables=[("public", "item")])) == [1]
        await asyncio.sleep(0)  # the driver calls its loggers from the event loop
    assert sent == [window_statement(is_narrowed=False)]


@pytest.mark.parametrize("is_quick", [True, False])
async def test_changes_of_other_tables_do_not_matter(shop: Shop, *, is_quick: bool) -> None:
    """Both ways to look agree: on the tables of a tree of partitions, too."""
    shop.log._quick._is_pooled = not is_quick
    await shop.sql.execute(
        """
        create table parts (id integer primary key) partition by range (id);
        create table middle partition of parts for values from (0) to (9) partition by range (id);
        create table low partition of middle for values from (0) to (5);
        create table high partition of middle for values from (5) to (9);
        """
    )
    await shop.capture("public.parts")
    position = await shop.log.position()
    for number in range(3):
        await shop.insert(number)
        await shop.sql.execute("insert into low values ($1)", number)
        await shop.sql.execute("insert into high values ($1 + 5)", number)
        for names, found in {
            ("item",): [number],
            ("low",): [number],
            ("middle",): [number, number + 5],
            ("high", "item"): [number, number + 5],
            (): [],
        }.items():
            batch = await shop.read(position, tables=[("public", name) for name in names])
            assert ids(batch) == found
        position = batch.position


async def test_looks_at_once_do_not_wait_for_each_other(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1)
    batches = await asyncio.gather(*(shop.read(start) for _ in range(4)))
    assert [ids(batch) for batch in batches] == [[1]] * 4


async def test_a_pool_of_one_connection_is_enough(shop: Shop) -> None:
    engine = create_async_engine(shop.engine.url, pool_size=1, max_overflow=0, pool_timeout=3)
    async with ChangeLog(engine) as log:
        start = await log.position()
        await shop.insert(1)
        assert ids(await log.read(start)) == [1]
        assert ids(await log.read(start, until=await log.position())) == [1]
    await engine.dispose()


async def test_a_read_after_the_connection_was_lost_opens_another(shop: Shop) -> None:
    position = (await shop.read(await shop.log.position())).position
    driver = await shop.log._quick._open()
    assert driver is not None
    await shop.sql.execute("select pg_terminate_backend($1)", driver.get_server_pid())
    async with asyncio.timeout(30):
        while not driver.is_closed():
            await asyncio.sleep(0.005)
    await shop.insert(1)
    assert ids(await shop.read(position)) == [1]


async def test_behind_a_transaction_pooler_reads_are_transactions_that_leave_nothing_behind(
    server: EmbeddedPostgres, shop: Shop
) -> None:
    await shop.sql.execute("create table other (id integer primary key)")
    await shop.capture("public.other")
    async with (
        pgbouncer(server) as port,
        pooled(port, shop.engine) as engine,
        ChangeLog(engine) as log,
    ):
        async with engine.connect() as connection:
            assert not await is_direct(connection)
        position = await log.position()
        for number in range(5):
            await shop.insert(number)
            await shop.sql.execute("insert into other values ($1)", number + 10)
            for names, found in {
                ("item",): [number],
                ("other",): [number + 10],
                ("item", "other"): [number, number + 10],
                (): [],
            }.items():
                tables = [("public", name) for name in names]
                batch, whole = await asyncio.gather(
                    log.read(position, tables=tables), log.read(position)
                )
                assert ids(batch) == found
                assert ids(whole) == [number, number + 10]
            position = whole.position or ""
        assert await log._quick._open() is None
        names = ("enable_seqscan", "plan_cache_mode", "jit", "work_mem")
        names += ("default_transaction_read_only", "max_parallel_workers_per_gather")
        untouched = tuple([await shop.sql.fetchval(f"show {name}") for name in names])
        assert await settings_in_pool(port, engine.url.database or "", *names) == {untouched}
