"""Pruning: which changes are deleted, which readers get a reset, and that no session is blocked."""

import asyncio
import logging
from functools import partial

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import tail
from rowsignal.change_log.pruning import keep_pruned
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Reset
from rowsignal.exceptions import SchemaVersionError
from rowsignal.retention import Retention, get_retention, prune, set_retention
from support.change_log import Shop, connect, ids

EVERYTHING = Retention(max_age=0.0)


async def logged(shop: Shop) -> list[int]:
    """Return the keys that are in the log."""
    rows = await shop.sql.fetch(
        "select (key ->> 'id')::int as id from rowsignal.change order by id"
    )
    return [row["id"] for row in rows]


async def age(shop: Shop, seconds: int) -> None:
    """Let time pass since everything that was noted so far."""
    await shop.sql.execute(
        "update rowsignal.tick set taken_at = taken_at - make_interval(secs => $1)", seconds
    )


async def test_what_is_older_goes_and_what_is_younger_stays(shop: Shop) -> None:
    keep = Retention(max_age=60.0)
    await shop.log.position()
    await shop.insert(1)
    assert (await prune(shop.engine, keep)).deleted == 0, "seen for the first time"
    await age(shop, 61)
    await shop.insert(2)
    report = await prune(shop.engine, keep)
    assert report.deleted == 1
    assert not report.is_skipped
    assert await logged(shop) == [2]


async def test_a_late_commit_is_not_pruned_with_its_time_of_capture(shop: Shop) -> None:
    start = await shop.log.position()
    slow = await shop.connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (1, 0)")
    await shop.insert(2)
    current = (await shop.read(start)).position
    keep = Retention(max_age=60.0)
    await prune(shop.engine, keep)
    await age(shop, 3600)
    await transaction.commit()
    await prune(shop.engine, keep)
    captured = "select count(*) from rowsignal.change where captured_at < clock_timestamp()"
    assert await shop.sql.fetchval(captured) == 1, "by that, it would have been due with item 2"
    assert await logged(shop) == [1]
    assert ids(await shop.read(current)) == [1], "who kept up has a change to read, not a gap"


async def test_positions_before_the_horizon_are_a_reset(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2)
    batch = await shop.read(start)
    await prune(shop.engine, EVERYTHING)
    now = await shop.log.position()
    for position in (start, batch.changes[0].position or ""):
        answer = await shop.log.read(position)
        assert isinstance(answer, Reset)
        assert "pruned" in answer.reason
    assert ids(await shop.read(batch.position)) == [], "it had read all of it"
    await shop.insert(3)
    assert ids(await shop.read(now)) == [3]


async def test_a_running_transaction_does_not_age_a_position(shop: Shop) -> None:
    slow = await shop.connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (1, 0)")
    before = await shop.log.position()
    await transaction.commit()
    await prune(shop.engine, EVERYTHING)
    answer = await shop.log.read(before)
    assert isinstance(answer, Reset), "its running transaction is pruned"


async def test_the_log_is_kept_below_a_size(shop: Shop) -> None:
    keep = Retention(max_bytes=100_000)
    for start in range(0, 4000, 500):
        await shop.insert(*range(start, start + 500))
        report = await prune(shop.engine, keep)
    assert report.bytes_left <= 100_000
    rest = await logged(shop)
    assert 0 < len(rest) < 1000
    assert rest == list(range(4000 - len(rest), 4000)), "the newest stay"


async def test_a_log_without_readers_is_pruned_by_the_server_itself(shop: Shop) -> None:
    await shop.insert(1, 2)
    await shop.sql.execute("select * from rowsignal.prune_v3('0 seconds')")
    assert await logged(shop) == []


async def test_a_stored_retention_is_the_default(shop: Shop) -> None:
    assert await get_retention(shop.engine) == Retention(), "what is stored at first"
    await shop.log.position()
    await shop.insert(1, 2)
    assert (await prune(shop.engine)).deleted == 0
    await set_retention(shop.engine, EVERYTHING)
    assert await get_retention(shop.engine) == EVERYTHING
    assert (await prune(shop.engine, Retention())).deleted == 0, "for one call another"
    assert (await prune(shop.engine)).deleted == 2
    await shop.insert(3)
    await shop.sql.execute("select * from rowsignal.prune_v2()")
    assert await logged(shop) == []


async def test_a_process_that_follows_the_log_prunes_it(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "keep_pruned", partial(keep_pruned, interval=0.05))
    await set_retention(shop.engine, EVERYTHING)
    async with LogTail.of(shop.engine).subscribe([("public", "item")]):
        await shop.insert(1, 2)
        async with asyncio.timeout(30):
            while await logged(shop):
                await asyncio.sleep(0.02)


async def test_pruning_goes_on_after_an_outage(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await set_retention(shop.engine, EVERYTHING)
    await shop.insert(1)
    await shop.sql.execute("alter function rowsignal.prune_v2 rename to gone")
    task = asyncio.create_task(keep_pruned(shop.engine, interval=0.02))
    async with asyncio.timeout(30):
        while "could not be pruned" not in caplog.text:
            await asyncio.sleep(0.02)
        await shop.sql.execute("alter function rowsignal.gone rename to prune_v2")
        while await logged(shop):
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_role_that_may_not_prune_leaves_it_to_others(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    await shop.sql.execute("create role no_pruner login; grant usage on schema rowsignal to public")
    engine = create_async_engine(shop.engine.url.set(username="no_pruner"))
    caplog.set_level(logging.INFO)
    try:
        async with asyncio.timeout(30):
            await keep_pruned(engine, interval=0.02)
    finally:
        await engine.dispose()
        await shop.sql.execute("drop owned by no_pruner; drop role no_pruner")
    assert "no right to prune" in caplog.text


async def test_pruning_goes_in_batches(shop: Shop) -> None:
    await shop.log.position()
    for number in range(10):
        await shop.insert(number)
    report = await prune(shop.engine, EVERYTHING, batch_size=3, pause=0.0)
    assert report.deleted == 10
    assert await logged(shop) == []


async def test_pruning_blocks_no_session_and_waits_for_none(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1)
    other = await shop.connect()
    await other.execute("set lock_timeout = '1s'")
    transaction = shop.sql.transaction()
    await transaction.start()
    await shop.sql.execute("insert into item values (2, 0)")
    report = await asyncio.wait_for(prune(shop.engine, EVERYTHING), 10)
    assert report.deleted == 1, "an open writer blocks no session"
    await transaction.commit()

    await transaction_of_prune(shop)
    await other.execute("insert into item values (3, 0)")
    assert ids(await shop.read(await shop.log.position())) == []
    assert isinstance(await shop.log.read(start), Reset)
    assert (await prune(shop.engine, EVERYTHING)).is_skipped, "one at a time"
    await shop.sql.execute("rollback")


async def transaction_of_prune(shop: Shop) -> None:
    """Leave a pruning unfinished, with all its locks."""
    await shop.sql.execute("begin")
    await shop.sql.execute("select * from rowsignal.prune_v3('0 seconds')")


async def test_pruning_within_work_of_ones_own_is_refused(shop: Shop) -> None:
    async with shop.sql.transaction():
        await shop.insert(1)
        with pytest.raises(Exception, match="has written nothing"):
            async with shop.sql.transaction():
                await shop.sql.execute("select * from rowsignal.prune_v3()")


async def test_stored_positions_go_with_what_they_point_at(shop: Shop) -> None:
    await shop.log.position()
    await shop.sql.execute("select rowsignal.store_position_v2(pg_current_snapshot(), null)")
    await prune(shop.engine, EVERYTHING)
    assert await shop.sql.fetchval("select count(*) from rowsignal.stored_position") == 0


async def test_few_notes_are_kept_of_the_past(shop: Shop) -> None:
    for _ in range(20):
        await prune(shop.engine)
    assert await shop.sql.fetchval("select count(*) from rowsignal.tick") == 1


async def test_the_first_plan_of_a_batch_uses_the_index(shop: Shop) -> None:
    settings = await shop.sql.fetchval("select proconfig from pg_proc where proname = 'prune_v3'")
    assert {"enable_seqscan=off", "plan_cache_mode=force_custom_plan"} < set(settings)


@pytest.mark.usefixtures("no_schema")
async def test_what_is_no_retention_or_no_log_is_said(engine: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="keeps less than nothing"):
        Retention(max_age=-1.0)
    connection = await connect(engine)
    await connection.close()
    with pytest.raises(SchemaVersionError, match="no change log"):
        await prune(engine)
