"""Reading the log stays cheap at any size: the plan uses the index, whatever else goes on."""

import re
from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import positions
from rowsignal.change_log.quick_reader import window_statement
from rowsignal.change_log.reader import log_transaction
from rowsignal.postgres.statements import query
from support.change_log import Shop, ids, open_shop

ROWS = 400_000
RUNNING = re.compile(r"Function Scan on unnest r .*?Rows Removed by Filter: \d+", re.DOTALL)
FILL = """
insert into rowsignal.change (xid, relation, operation, key, changed)
select (3 + g / 1000)::text::xid8, 'item'::regclass, 'u', jsonb_build_object('id', g), '{v}'
from generate_series(1, $1::int) g
"""
FLOOD = """
insert into rowsignal.change (relation, operation, key)
select 1, 'i', jsonb_build_object('id', g) from generate_series(1, $1::int) g
"""


@pytest.fixture(params=["analyzed", "never analyzed"])
async def big_log(engine: AsyncEngine, request: pytest.FixtureRequest) -> AsyncIterator[Shop]:
    async with open_shop(engine) as shop:
        await shop.log.position()  # begins the log, which deletes what could not be of its past
        await shop.sql.execute("alter table rowsignal.change set (autovacuum_enabled = off)")
        await shop.sql.execute(FILL, ROWS)
        if request.param == "analyzed":
            await shop.sql.execute("analyze rowsignal.change")
        yield shop


async def plan(
    shop: Shop, position: str, prepare: str | None = None, relations: str = "null"
) -> str:
    """Return the plan of the reading statement, as it runs."""
    start = positions.decode(position)
    assert isinstance(start, positions.Position)
    statement = query("log_changes")
    names = ("xid8", "text[]", "text", "bigint", "oid[]", "bigint")
    async with log_transaction(shop.engine) as transaction:
        driver = transaction.driver
        if prepare is not None:
            await driver.execute(prepare)
        await driver.execute(f"prepare reading ({', '.join(names)}) as {statement}")
        running = "{" + ",".join(map(str, start.seen.running)) + "}"
        now = await driver.fetchval("select pg_current_snapshot()::text")
        rows = await driver.fetch(
            "explain (analyze, buffers, costs off, timing off, summary off) execute reading"
            f" ('{start.seen.xmax}', '{running}', '{now}', 0, {relations}, 5000)"
        )
        await driver.execute("deallocate reading")
    return "\n".join(row[0] for row in rows)


async def plan_of_look(shop: Shop, position: str, *, is_narrowed: bool) -> str:
    """Return the plan of the one statement that most looks are, as it runs."""
    start = positions.decode(position)
    assert isinstance(start, positions.Position)
    names = ["xid8", "xid8[]", "uuid", "bigint", "text", *["text[]"] * (2 * is_narrowed)]
    connection = await shop.connect()
    await connection.execute(query("log_look_settings"))
    origin = await connection.fetchval(query("log_look_origin"))
    statement = window_statement(is_narrowed=is_narrowed)
    await connection.execute(f"prepare look ({', '.join(names)}) as {statement}")
    running = "{" + ",".join(map(str, start.seen.running)) + "}"
    tables = ", '{public}', '{item}'" if is_narrowed else ""
    rows = await connection.fetch(
        "explain (analyze, buffers, costs off, timing off, summary off) execute look"
        f" ('{start.seen.xmax}', '{running}', '{start.incarnation}', 1001, '{origin}'{tables})"
    )
    found = "\n".join(row[0] for row in rows)
    assert "never executed" not in found.partition("SubPlan")[0], found
    return found


def assert_cheap(plan: str) -> None:
    assert plan.count("using change_xid") + plan.count("on change_xid") == 2, plan
    assert "Seq Scan on change" not in plan, plan
    plan = RUNNING.sub("", plan)  # transactions that still run are left out one by one
    assert "Rows Removed by Filter" not in plan or "Rows Removed by Filter: 0" in plan, plan


async def test_the_index_is_used_whatever_else_goes_on(big_log: Shop) -> None:
    assert await big_log.sql.fetchval("select count(*) from rowsignal.change") == ROWS
    slow = await big_log.connect()
    transaction = slow.transaction()
    await transaction.start()
    await slow.execute("insert into item values (0, 0)")
    start = await big_log.log.position()
    for number in range(1, 20):
        await big_log.insert(number)
    later = await big_log.log.position()
    await big_log.insert(20)
    assert_cheap(await plan(big_log, start))
    assert_cheap(await plan(big_log, later))
    assert_cheap(await plan(big_log, later, "set local plan_cache_mode = force_generic_plan"))
    for is_narrowed in (False, True):
        assert_cheap(await plan_of_look(big_log, start, is_narrowed=is_narrowed))
        assert_cheap(await plan_of_look(big_log, later, is_narrowed=is_narrowed))
    await transaction.commit()
    assert_cheap(await plan(big_log, later))
    assert_cheap(await plan_of_look(big_log, later, is_narrowed=False))
    assert_cheap(await plan_of_look(big_log, later, is_narrowed=True))
    assert ids(await big_log.read(later)) == [0, 20]


async def test_changes_of_other_tables_are_not_looked_at(big_log: Shop) -> None:
    if big_log.sql.get_server_version() < (17, 0):
        pytest.skip("the index has no part in choosing tables before PostgreSQL 17")
    start = await big_log.log.position()
    await big_log.sql.execute(FLOOD, 50_000)
    await big_log.insert(1)
    item = await big_log.sql.fetchval("select 'item'::regclass::oid")
    assert_cheap(await plan(big_log, start, relations=f"'{{{item}}}'"))
    assert_cheap(await plan_of_look(big_log, start, is_narrowed=True))
