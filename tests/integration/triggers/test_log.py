"""What log capture writes, and when it wakes readers."""

from typing import Any

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.payload import LOCK_CLASS, LOG_BUCKET
from rowsignal.triggers import install_triggers
from support.hint_listener import connected, listening

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, status text, amount numeric, note json)"
ROWS = "INSERT INTO orders SELECT g, 'new', 1.0, '{}' FROM generate_series(1, 3) g"
LOG = (
    "SELECT operation::text, (key ->> 'id')::int, changed FROM rowsignal.change"
    " ORDER BY rowsignal.change.id"
)


async def install(engine: AsyncEngine, **settings: Any) -> None:
    async with connected(engine) as owner:
        await owner.execute(TABLE)
        await owner.execute(
            "INSERT INTO orders SELECT g, 'new', 1.0, '{}' FROM generate_series(1, 3) g"
        )
    await install_triggers(engine, "orders", log=True, **settings)


async def logged(writer: asyncpg.Connection, statement: str) -> list[tuple[Any, ...]]:
    await writer.execute("TRUNCATE rowsignal.change")
    await writer.execute(statement)
    return [tuple(row) for row in await writer.fetch(LOG)]


CHANGES: dict[str, list[tuple[Any, ...]]] = {
    "UPDATE orders SET status = status": [],
    "UPDATE orders SET status = 'x' WHERE id = 99": [],
    "UPDATE orders SET status = 'x' WHERE id = 1": [("u", 1, ["status"])],
    "UPDATE orders SET amount = 1.00, note = '{ }' WHERE id < 3": [
        ("u", 1, ["amount", "note"]),
        ("u", 2, ["amount", "note"]),
    ],
    "UPDATE orders SET id = id + 10, status = 'x' WHERE id < 3": [
        ("d", 1, None),
        ("d", 2, None),
        ("i", 11, None),
        ("i", 12, None),
    ],
    "INSERT INTO orders VALUES (4, 'a'), (3, 'b') ON CONFLICT (id) DO UPDATE SET status = 'y'": [
        ("i", 4, None),
        ("u", 3, ["status"]),
    ],
    "INSERT INTO orders VALUES (3) ON CONFLICT DO NOTHING": [],
    "DELETE FROM orders WHERE id = 3": [("d", 3, None)],
    "BEGIN; SAVEPOINT s; DELETE FROM orders; ROLLBACK TO s; COMMIT": [],
    "TRUNCATE orders": [("t", None, None)],
}


async def test_a_statement_is_logged_by_what_it_does(engine: AsyncEngine) -> None:
    await install(engine)
    async with connected(engine) as writer:
        found = {statement: sorted(await logged(writer, statement)) for statement in CHANGES}
    assert found == {statement: sorted(expected) for statement, expected in CHANGES.items()}


async def test_deletes_of_a_statement_come_first(engine: AsyncEngine) -> None:
    await install(engine)
    async with connected(engine) as writer:
        await writer.execute("ALTER TABLE orders DROP CONSTRAINT orders_pkey")
        await writer.execute("ALTER TABLE orders ADD PRIMARY KEY (id) DEFERRABLE")
        found = await logged(writer, "UPDATE orders SET id = id + 1")
    operations = [operation for operation, _, _ in found]
    assert operations == sorted(operations, key=lambda operation: operation != "d")
    assert ("d", 1, None) in found
    assert ("i", 4, None) in found


async def test_values_are_logged_where_asked_for(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await install(engine, filter_columns=["status"])
        for settings, old, new in (
            ({"filter_columns": ["status"]}, '{"status": "new"}', '{"status": "x"}'),
            (
                {"row_values": True, "exclude": ["note", "amount"]},
                '{"id": 1, "status": "new"}',
                '{"id": 1, "status": "x"}',
            ),
        ):
            await install_triggers(engine, "orders", log=True, **settings)
            await writer.execute("TRUNCATE rowsignal.change; UPDATE orders SET status = 'new'")
            await writer.execute("TRUNCATE rowsignal.change")
            await writer.execute("UPDATE orders SET status = 'x', amount = 7 WHERE id = 1")
            rows = await writer.fetch("SELECT old_row, new_row FROM rowsignal.change")
            assert [tuple(row) for row in rows] == [(old, new)]


async def test_only_columns_that_count_are_logged(engine: AsyncEngine) -> None:
    await install(engine, columns=["status"])
    async with connected(engine) as writer:
        assert await logged(writer, "UPDATE orders SET amount = 2") == []
        both = await logged(writer, "UPDATE orders SET amount = 3, status = 'x' WHERE id = 1")
        assert both == [("u", 1, ["status"])]
        # the same from the function that no longer fits its table
        await writer.execute("ALTER TABLE orders ADD extra int")
        assert await logged(writer, "UPDATE orders SET amount = 4, extra = 1") == []
        both = await logged(writer, "UPDATE orders SET amount = 5, status = 'y' WHERE id = 1")
        assert both == [("u", 1, ["status"])]


async def test_readers_are_woken_only_while_they_sleep(engine: AsyncEngine) -> None:
    await install(engine)
    async with listening(engine) as hint_listener, connected(engine) as writer:
        for is_asleep in (False, True, False):
            if is_asleep:
                await hint_listener.arm()
            await writer.execute("INSERT INTO orders VALUES (9)")
            await writer.execute("UPDATE orders SET amount = 1 WHERE id = 99")  # wakes no listener
            await writer.execute("TRUNCATE orders")
            await hint_listener.settle()
            if is_asleep:
                await hint_listener.disarm()
        assert hint_listener.wakes == 2


async def test_a_writer_that_probes_is_no_reader(engine: AsyncEngine) -> None:
    await install(engine)
    async with (
        listening(engine) as hint_listener,
        connected(engine) as writer,
        connected(engine) as other,
    ):
        await other.execute(f"SELECT pg_advisory_lock({LOCK_CLASS}, {LOG_BUCKET})")
        await writer.execute("UPDATE orders SET amount = amount + 1; DELETE FROM orders")
        await hint_listener.settle()
        assert hint_listener.wakes == 0


async def test_without_notify_nothing_is_sent(engine: AsyncEngine) -> None:
    await install(engine, notify=False)
    async with listening(engine) as hint_listener, connected(engine) as writer:
        await hint_listener.arm()
        await writer.execute("UPDATE orders SET amount = 2; TRUNCATE orders")
        await hint_listener.settle()
        assert hint_listener.wakes == 0


async def test_statements_take_no_transaction_ids_of_their_own(engine: AsyncEngine) -> None:
    await install(engine)
    now = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"
    async with connected(engine) as writer:
        before = await writer.fetchval(now)
        async with writer.transaction():
            for _ in range(20):
                await writer.execute("UPDATE orders SET amount = amount + 1")
        assert await writer.fetchval(now) - before < 10


@pytest.mark.parametrize("rows", [1, 20_000])
async def test_a_plan_made_for_one_row_serves_many(engine: AsyncEngine, rows: int) -> None:
    await install(engine)
    async with connected(engine) as writer:
        await writer.execute(
            f"INSERT INTO orders SELECT g, 'a' FROM generate_series(10, {rows + 9}) g"
        )
        for _ in range(7):  # a prepared plan turns generic after five
            await writer.execute("UPDATE orders SET amount = coalesce(amount, 0) + 1 WHERE id = 10")
        found = await logged(writer, "UPDATE orders SET status = 'b' WHERE id >= 10")
        assert len(found) == rows
