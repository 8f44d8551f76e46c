"""What lies between two positions: everything that was committed, once, in order."""

from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import ChangeLog, positions
from rowsignal.change_log import log as change_log
from rowsignal.changes import Change, Operation, Reset
from rowsignal.exceptions import PositionError, SchemaVersionError
from support.change_log import Shop, ids


async def test_changes_come_once_and_in_order(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2)
    await shop.sql.execute("update item set v = 1 where id = 2")
    await shop.sql.execute("delete from item where id = 1")
    await shop.sql.execute("truncate item")
    first = await shop.read(start)
    assert [(change.operation, change.key) for change in first.changes] == [
        (Operation.INSERT, {"id": 1}),
        (Operation.INSERT, {"id": 2}),
        (Operation.UPDATE, {"id": 2}),
        (Operation.DELETE, {"id": 1}),
        (Operation.TRUNCATE, None),
    ]
    assert first.is_complete
    assert ids(await shop.read(first.position)) == []


async def test_a_change_says_all_that_is_known(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(7)
    await shop.sql.execute("update item set v = 5")
    batch = await shop.read(start)
    inserted, updated = batch.changes
    assert inserted == Change(
        operation=Operation.INSERT,
        schema="public",
        table="item",
        key={"id": 7},
        position=inserted.position,
        transaction_id=inserted.transaction_id,
        captured_at=inserted.captured_at,
        row={"id": 7, "v": 0},
    )
    assert updated.changed == ("v",)
    assert updated.transaction_id == inserted.transaction_id + 1
    assert updated.captured_at > inserted.captured_at
    assert batch.before == [None, {"id": 7, "v": 0}]


async def test_a_change_that_commits_late_is_not_passed_over(shop: Shop) -> None:
    slow = await shop.connect()
    start = await shop.log.position()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (1, 0)")
    await shop.insert(2)
    first = await shop.read(start)
    assert ids(first) == [2], "a long transaction must not hold the others back"
    await transaction.commit()
    assert ids(await shop.read(first.position)) == [1], "its id is lower, its commit later"


async def test_a_batch_that_was_interrupted_goes_on_after_a_late_commit(shop: Shop) -> None:
    slow = await shop.connect()
    start = await shop.log.position()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (1, 0)")
    await shop.insert(2, 3, 4)
    batch = await shop.read(start)
    await transaction.commit()
    rest = await shop.read(batch.changes[0].position)
    assert ids(rest) == [3, 4], "item 1 was not in that batch, and is not in its rest"
    assert not rest.is_complete, "there is more: what came after that batch"
    assert ids(await shop.read(rest.position)) == [1], "with the id alone, item 1 would be lost"


async def test_every_change_can_be_resumed_after(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2, 3)
    batch = await shop.read(start)
    await shop.insert(4)
    for place, change in enumerate(batch.changes):
        seen, position = [], change.position
        while not seen or seen[-1] != 4:
            following = await shop.read(position)
            seen += ids(following)
            position = following.position
        assert seen == [1, 2, 3, 4][place + 1 :]


async def test_reading_ends_at_the_position_to_read_until(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2)
    end = await shop.log.position()
    await shop.insert(3)
    page = await shop.read(start, until=end, limit=1)
    assert ids(page) == [1]
    assert not page.is_complete
    last = await shop.read(page.position, until=end)
    assert ids(last) == [2]
    assert last.is_complete
    assert last.position == end
    with pytest.raises(ValueError, match="lies before"):
        await shop.log.read(end, until=start)


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
async def test_one_transaction_is_read_in_pages(shop: Shop, limit: int) -> None:
    position = await shop.log.position()
    await shop.insert(*range(7))
    seen: list[int | None] = []
    while True:
        batch = await shop.read(position, limit=limit)
        assert len(batch.changes) <= limit
        seen += ids(batch)
        position = batch.position
        if batch.is_complete:
            break
    assert seen == list(range(7))


async def test_a_gap_is_caught_up_with_page_by_page(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(*range(10))
    pages = [page async for page in shop.log.pages(start, size=4)]
    assert [ids(page) for page in pages] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [page.is_complete for page in pages if not isinstance(page, Reset)] == [0, 0, 1]
    middle = pages[1].position
    await shop.insert(10)
    rest = [page async for page in shop.log.pages(middle, size=4)]
    assert [id_ for page in rest for id_ in ids(page)] == [8, 9, 10], (
        "the rest of a window, then on from its end"
    )


async def test_pages_that_are_left_early_leave_the_log_usable(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.insert(*range(100))
    pages = shop.log.pages(start, size=10)
    assert ids(await anext(pages)) == list(range(10))
    await pages.aclose()
    assert len(ids(await shop.read(start))) == 100


async def test_rolled_back_work_is_never_seen(shop: Shop) -> None:
    start = await shop.log.position()
    async with shop.sql.transaction():
        await shop.sql.execute("insert into item values (1, 0)")
        savepoint = shop.sql.transaction()
        await savepoint.start()
        await shop.sql.execute("insert into item values (2, 0)")
        await savepoint.rollback()
        async with shop.sql.transaction():
            await shop.sql.execute("insert into item values (3, 0)")
    assert ids(await shop.read(start)) == [1, 3]


async def test_only_the_tables_asked_for_are_read(shop: Shop) -> None:
    await shop.sql.execute('create schema "S"; create table "S"."Odd" (id integer primary key)')
    await shop.capture("S.Odd")
    start = await shop.log.position()
    await shop.insert(1)
    await shop.sql.execute('insert into "S"."Odd" values (2)')
    assert ids(await shop.read(start, tables=[("S", "Odd")])) == [2]
    assert ids(await shop.read(start, tables=[("public", "item")])) == [1]
    assert ids(await shop.read(start, tables=[("public", "none")])) == []
    assert [change.table for change in (await shop.read(start)).changes] == ["item", "Odd"]


async def test_a_partition_goes_by_its_root_and_a_renamed_table_by_its_new_name(
    shop: Shop,
) -> None:
    await shop.sql.execute(
        """
        create table parts (id integer primary key) partition by range (id);
        create table low partition of parts for values from (0) to (10);
        """
    )
    await shop.capture("public.parts")
    start = await shop.log.position()
    await shop.sql.execute("insert into low values (1)")
    await shop.sql.execute("alter table parts rename to pieces")
    batch = await shop.read(start, tables=[("public", "pieces")])
    assert [(change.table, change.key) for change in batch.changes] == [("pieces", {"id": 1})]


async def test_changes_of_a_dropped_table_are_passed_over(shop: Shop) -> None:
    await shop.sql.execute("create table gone (id integer primary key)")
    await shop.capture("public.gone")
    start = await shop.log.position()
    await shop.insert(1)
    await shop.sql.execute("insert into gone values (2)")
    await shop.sql.execute("drop table gone")
    batch = await shop.read(start)
    assert ids(batch) == [1]
    assert ids(await shop.read(batch.position)) == []


async def test_the_rows_of_a_snapshot_and_the_changes_after_it_are_all_there_is(
    shop: Shop,
) -> None:
    slow = await shop.connect()
    await shop.insert(1)
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (2, 0)")
    async with shop.log.snapshot() as snapshot:
        await transaction.commit()
        await shop.insert(3)
        rows = await snapshot.connection.exec_driver_sql("select id from item")
        assert rows.scalars().all() == [1]
        with pytest.raises(Exception, match="read-only"):
            await snapshot.connection.exec_driver_sql("delete from item")
    assert ids(await shop.read(snapshot.position)) == [2, 3]


async def test_a_position_too_long_to_carry_is_stored(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = await shop.log.position()
    await shop.insert(1, 2, 3)
    monkeypatch.setattr(change_log, "MAX_LENGTH", 10)
    batch = await shop.read(start)
    stored = [positions.decode(change.position) for change in batch.changes if change.position]
    assert {type(position) for position in stored} == {positions.StoredPosition}
    assert ids(await shop.read(batch.changes[0].position or "")) == [2, 3]
    assert ids(await shop.read(batch.position)) == []
    await shop.sql.execute("delete from rowsignal.stored_position")
    assert isinstance(await shop.log.read(batch.position), Reset)


async def test_writers_at_work_are_known(shop: Shop) -> None:
    other = await shop.connect()
    assert await shop.log.writers() == frozenset()
    async with shop.sql.transaction():
        await shop.sql.execute("insert into item values (1, 0)")
        early = await shop.log.writers()
        assert len(early) == 1
        async with other.transaction():
            await other.execute("insert into item values (2, 0)")
            assert early < await shop.log.writers()
    assert await shop.log.writers() == frozenset()


async def test_text_that_is_no_position_is_an_error(shop: Shop) -> None:
    await shop.log.position()
    with pytest.raises(PositionError, match="is not a position"):
        await shop.log.read("12345")


@pytest.mark.parametrize("xmax", [positions.MAX_XID, 2**40])
async def test_a_position_ahead_of_the_log_is_a_reset(shop: Shop, xmax: int) -> None:
    now = positions.decode(await shop.log.position())
    ahead = positions.Position(now.incarnation, positions.Snapshot(xmax)).encode()
    answer = await shop.log.read(ahead)
    assert isinstance(answer, Reset)
    assert "ahead" in answer.reason


async def test_a_forged_position_at_the_beginning_of_time_reads_a_page(shop: Shop) -> None:
    await shop.insert(*range(20))
    now = positions.decode(await shop.log.position())
    await shop.sql.execute("delete from rowsignal.horizon")
    forged = positions.Position(now.incarnation, positions.Snapshot(1)).encode()
    assert len((await shop.read(forged, limit=5)).changes) == 5


async def test_a_position_of_another_log_is_a_reset_that_goes_on(shop: Shop) -> None:
    start = positions.decode(await shop.log.position())
    foreign = positions.Position(uuid4(), start.seen).encode()
    answer = await shop.log.read(foreign)
    assert isinstance(answer, Reset)
    assert "another log" in answer.reason
    await shop.insert(1)
    assert ids(await shop.read(answer.position)) == [1]


@pytest.mark.usefixtures("no_schema")
async def test_a_database_without_a_log_says_so(engine: AsyncEngine) -> None:
    async with ChangeLog(engine) as log:
        with pytest.raises(SchemaVersionError, match="no change log"):
            await log.position()


async def test_other_roles_have_no_rights_on_the_log(shop: Shop) -> None:
    await shop.sql.execute("create role nobody_special; set role nobody_special")
    try:
        for table in ("change", "incarnation", "horizon", "tick", "stored_position"):
            with pytest.raises(Exception, match="permission denied"):
                await shop.sql.execute(f"select * from rowsignal.{table}")
        with pytest.raises(Exception, match="permission denied"):
            await shop.sql.execute("select rowsignal.prune_v3()")
    finally:
        await shop.sql.execute("reset role; drop role nobody_special")


async def test_a_role_that_was_given_the_right_reads(shop: Shop) -> None:
    guide = (Path(__file__).parents[3] / "docs/explanation/change-log.md").read_text()
    grants = guide.partition("```sql\n")[2].partition("```")[0]
    await shop.sql.execute(f"create role reader login; {grants}")
    engine = create_async_engine(shop.engine.url.set(username="reader"))
    try:
        async with ChangeLog(engine) as log:
            start = await log.position()
            await shop.insert(1)
            assert ids(await log.read(start)) == [1]
    finally:
        await engine.dispose()
        await shop.sql.execute("drop owned by reader; drop role reader")


async def test_what_is_durable_has_been_flushed(shop: Shop) -> None:
    start = await shop.log.position()
    await shop.sql.execute("set synchronous_commit = off")
    await shop.insert(1)
    inserted = await shop.sql.fetchval("select pg_current_wal_insert_lsn()")
    assert ids(await shop.read(start, is_durable=True)) == [1]
    assert await shop.sql.fetchval("select pg_current_wal_flush_lsn()") >= inserted
