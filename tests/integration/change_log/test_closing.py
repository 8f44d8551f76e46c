"""No connection outlives what has opened it, wherever a start, a read or an end is cut off."""

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from rowsignal.change_log import ChangeLog
from rowsignal.change_log.tail import LogTail
from rowsignal.listener import Listener
from rowsignal.listener.pacing import Pace
from support.change_log import Shop
from support.proxy import through_proxy
from support.waits import until_equal

ITEM = ("public", "item")
OURS = "select count(*) from pg_stat_activity where usename = $1"


@pytest.fixture
async def ours(shop: Shop) -> AsyncIterator[AsyncEngine]:
    """Provide an engine of a role that nothing else uses."""
    role = f"reader_{shop.engine.url.database}"
    await shop.sql.execute(f"create role {role} login superuser")
    engine = create_async_engine(shop.engine.url.set(username=role))
    yield engine
    await engine.dispose()
    await until_equal(lambda: shop.sql.fetchval(OURS, role), 0)
    await shop.sql.execute(f"drop role {role}")


async def test_a_start_that_is_cancelled(shop: Shop, ours: AsyncEngine) -> None:
    tails = []  # kept, so that no garbage collection closes what they have left open
    async with Listener(ours) as listener:

        async def follow() -> None:
            tails.append(LogTail(listener, Pace(idle_timeout=0.0)))
            async with tails[-1].subscribe([ITEM]):
                await asyncio.Event().wait()

        for step in range(25):
            task = asyncio.create_task(follow())
            await asyncio.sleep(step * 0.002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
    assert {tail.mode for tail in tails} == {"stopped"}
    await until_equal(lambda: shop.sql.fetchval(OURS, ours.url.username), 0)


async def test_a_snapshot_that_is_read_when_the_log_is_closed(
    shop: Shop, ours: AsyncEngine
) -> None:
    await shop.insert(1, 2)
    log = ChangeLog(ours)
    async with log.snapshot() as snapshot:
        await log.aclose()
        found = await snapshot.connection.execute(text("select count(*) from item"))
        assert found.scalar_one() == 2
    await until_equal(lambda: shop.sql.fetchval(OURS, ours.url.username), 0)
    assert await log.position()  # it opens its connections again
    await log.aclose()


async def test_an_event_loop_that_ends_with_a_read(
    shop: Shop, ours: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    before = await shop.log.position()
    await shop.insert(*range(30_000))
    first = await shop.read(before, limit=100)

    async def read(seconds: float) -> None:
        log = ChangeLog(create_async_engine(ours.url, poolclass=NullPool))
        page = asyncio.create_task(log.read(first.position, limit=20_000))
        await asyncio.sleep(seconds)
        if page.done():  # its cursor waits for the next page
            await log.aclose()

    for step in range(12):
        await asyncio.to_thread(asyncio.run, read(step * 0.008))
        gc.collect()
    assert not [it for it in caplog.records if it.name == "asyncio"]
    await until_equal(lambda: shop.sql.fetchval(OURS, ours.url.username), 0)


async def test_a_read_that_is_cancelled_on_a_dead_connection(shop: Shop, ours: AsyncEngine) -> None:
    before = await shop.log.position()
    await shop.insert(*range(30_000))
    first = await shop.read(before, limit=100)
    async with through_proxy(ours.url.render_as_string(hide_password=False)) as (proxy, far):
        for seconds in (0.02, 0.05):
            log = ChangeLog(create_async_engine(far, poolclass=NullPool))
            page = asyncio.create_task(log.read(first.position, limit=20_000))
            await asyncio.sleep(seconds)
            proxy.stall()
            page.cancel()
            await asyncio.wait([page])
            proxy.resume()
            await log.aclose()


async def test_a_log_that_was_read_and_never_followed(shop: Shop, ours: AsyncEngine) -> None:
    async with Listener(ours):
        tail = LogTail.of(ours)
        before = await tail.log.position()
        await shop.insert(1)
        await tail.log.read(before)
    await until_equal(lambda: shop.sql.fetchval(OURS, ours.url.username), 0)


async def test_the_end_of_a_listener_is_the_end_of_its_tail(shop: Shop, ours: AsyncEngine) -> None:
    async with Listener(ours), LogTail.of(ours).subscribe([ITEM]):
        await shop.insert(1)
    tasks = {task.get_name() for task in asyncio.all_tasks()}
    assert not {name for name in tasks if name.startswith("rowsignal")}
    await until_equal(lambda: shop.sql.fetchval(OURS, ours.url.username), 0)
