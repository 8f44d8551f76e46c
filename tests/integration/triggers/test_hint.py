"""What hint capture says, and when."""

from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.payload import decode_json
from rowsignal.triggers import install_triggers
from support.hint_listener import connected, listening

TABLE = "CREATE TABLE orders (id int PRIMARY KEY, status text, amount numeric, note json)"
ROWS = "INSERT INTO orders SELECT g, 'new', 1.0, '{}' FROM generate_series(1, 3) g"

KEYS = {
    "int": ("integer", "7", 7),
    "bigint": ("bigint", "9007199254740993", 9007199254740993),
    "boolean": ("boolean", "true", True),
    "text": ("text", "'a \"b\" \\ ü'", 'a "b" \\ ü'),
    "uuid": (
        "uuid",
        "'6BA7B810-9DAD-11D1-80B4-00C04FD430C8'",
        "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
    ),
    "numeric": ("numeric", "1.00", "1.00"),
    "float": ("double precision", "0.1", "0.1"),
    "date": ("date", "'2026-11-21'", "2026-11-21"),
    "timestamptz": ("timestamptz", "'2026-11-21 10:30+01'", "2026-11-21T09:30:00+00:00"),
    "interval": ("interval", "'1 day 2 hours'", "1 day 02:00:00"),
    "daterange": ("daterange", "'[2026-01-02,2026-02-03)'", "[2026-01-02,2026-02-03)"),
    "bytea": ("bytea", r"'\x00ff'", r"\x00ff"),
    "enum": ("mood", "'fine'", "fine"),
    "domain": ("positive", "5", 5),
    "char": ("char(4)", "'ab'", "ab  "),
    "array": ("int[]", "'{1,2}'", "[1,2]"),
    "jsonb": ("jsonb", """'{"a": 1}'""", '{"a": 1}'),
}


async def test_a_key_of_any_type_is_the_one_that_a_reader_derives(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute("CREATE TYPE mood AS ENUM ('fine'); CREATE DOMAIN positive AS int")
        for name, (column, _, _) in KEYS.items():
            await writer.execute(f'CREATE TABLE "{name}" (id {column} PRIMARY KEY, v int)')
        await install_triggers(engine, list(KEYS))
        await writer.execute("SET timezone = 'Asia/Tokyo'; SET datestyle = 'SQL, DMY'")
        await writer.execute("SET intervalstyle = 'iso_8601'; SET bytea_output = 'escape'")
        await writer.execute("SET extra_float_digits = -5")
        told, derived = {}, {}
        async with listening(engine, *KEYS) as hint_listener:
            for name, (_, literal, _) in KEYS.items():
                await writer.execute(f'INSERT INTO "{name}" VALUES ({literal}, 1)')
                await writer.execute(f'UPDATE "{name}" SET v = 2')
                key = await writer.fetchval(
                    f"SELECT concat('[', rowsignal.key_value_v1(t.id), ']') FROM \"{name}\" t"
                )
                derived[name] = decode_json(key)
                await writer.execute(f'DELETE FROM "{name}"')
                told[name] = await hint_listener.said()
    assert derived == {name: [expected] for name, (_, _, expected) in KEYS.items()}
    assert told == {
        name: [("insert", [key], None), ("update", [key], ["v"]), ("delete", [key], None)]
        for name, (_, _, key) in KEYS.items()
    }


@pytest.fixture
async def orders(engine: AsyncEngine) -> AsyncEngine:
    async with connected(engine) as writer:
        await writer.execute(TABLE)
        await writer.execute(ROWS)
    await install_triggers(engine, "orders")
    return engine


CHANGES: dict[str, tuple[str, list[Any]]] = {
    "nothing differs": ("UPDATE orders SET status = status", []),
    "no row is touched": ("UPDATE orders SET status = 'x' WHERE id = 99", []),
    "one column": ("UPDATE orders SET status = 'x' WHERE id = 1", [("update", [1], ["status"])]),
    "equal but stored otherwise": (
        "UPDATE orders SET amount = 1.00 WHERE id = 1",
        [("update", [1], ["amount"])],
    ),
    "json has no equality": (
        "UPDATE orders SET note = '{ }' WHERE id = 1",
        [("update", [1], ["note"])],
    ),
    "to null": ("UPDATE orders SET note = NULL WHERE id = 1", [("update", [1], ["note"])]),
    "the key changes": (
        "UPDATE orders SET id = 9 WHERE id = 1",
        [("delete", [1], None), ("insert", [9], None)],
    ),
    "upsert inserts": (
        "INSERT INTO orders VALUES (4) ON CONFLICT (id) DO UPDATE SET status = 'x'",
        [("insert", [4], None)],
    ),
    "upsert updates": (
        "INSERT INTO orders VALUES (3) ON CONFLICT (id) DO UPDATE SET status = 'x'",
        [("update", [3], ["status"])],
    ),
    "upsert does nothing": ("INSERT INTO orders VALUES (3) ON CONFLICT DO NOTHING", []),
    "in a subquery": (
        "WITH d AS (DELETE FROM orders WHERE id = 1 RETURNING 5) INSERT INTO orders TABLE d",
        [("delete", [1], None), ("insert", [5], None)],
    ),
    "truncate": ("TRUNCATE orders", [("truncate", None, None)]),
}


async def test_a_statement_is_told_by_what_it_does(orders: AsyncEngine) -> None:
    told = {}
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        for case, (statement, _) in CHANGES.items():
            await writer.execute(f"TRUNCATE orders; {ROWS}")
            await hint_listener.said()
            await writer.execute(statement)
            told[case] = sorted(await hint_listener.said(), key=repr)
    assert told == {case: sorted(expected, key=repr) for case, (_, expected) in CHANGES.items()}


async def test_merge_is_told_row_by_row(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        if writer.get_server_version() < (15,):
            pytest.skip("MERGE came with PostgreSQL 15")
        await writer.execute(
            "MERGE INTO orders o USING (VALUES (1, 'x'), (2, NULL), (8, 'new')) AS s (id, status)"
            " ON o.id = s.id WHEN MATCHED AND s.status IS NULL THEN DELETE"
            " WHEN MATCHED THEN UPDATE SET status = s.status"
            " WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.status)"
        )
        assert sorted(await hint_listener.said()) == [
            ("delete", [2], None),
            ("insert", [8], None),
            ("update", [1], ["status"]),
        ]


async def test_copy_is_told(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        await writer.copy_records_to_table("orders", records=[(10,), (11,)], columns=["id"])
        assert await hint_listener.said() == [("insert", [10], None), ("insert", [11], None)]


async def test_cascades_of_foreign_keys_are_told(orders: AsyncEngine) -> None:
    async with connected(orders) as writer:
        await writer.execute(
            "CREATE TABLE lines (id int, order_id int REFERENCES orders ON UPDATE CASCADE"
            " ON DELETE CASCADE,"
            " PRIMARY KEY (order_id, id)); INSERT INTO lines VALUES (1, 1), (2, 2)"
        )
        await install_triggers(orders, "lines")
        async with listening(orders, "lines") as hint_listener:
            await writer.execute("DELETE FROM orders WHERE id = 1")
            await writer.execute("UPDATE orders SET id = 20 WHERE id = 2")
            assert await hint_listener.said() == [
                ("delete", [1, 1], None),
                ("delete", [2, 2], None),
                ("insert", [20, 2], None),
            ]


async def test_what_a_savepoint_takes_back_is_not_told(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        async with writer.transaction():
            await writer.execute(
                "SAVEPOINT s; INSERT INTO orders SELECT g FROM generate_series(50, 350) g"
            )
            await writer.execute("ROLLBACK TO SAVEPOINT s; INSERT INTO orders VALUES (60)")
        assert await hint_listener.said() == [("insert", [60], None)]


async def test_a_bulk_is_told_once_for_each_operation(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        async with writer.transaction():
            await writer.execute("INSERT INTO orders SELECT g FROM generate_series(100, 1100) g")
            await writer.execute("UPDATE orders SET status = 'x'")
            await writer.execute("DELETE FROM orders")
        said = await hint_listener.said()
        assert len(said) == 103
        assert said[100:] == [(name, None, None) for name in ("insert", "update", "delete")]
        await writer.execute("INSERT INTO orders VALUES (1)")
        assert await hint_listener.said() == [("insert", [1], None)]


async def test_a_bulk_change_of_keys_is_told_as_deletes_and_inserts(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        await writer.execute("INSERT INTO orders SELECT g FROM generate_series(100, 300) g")
        await hint_listener.said()
        await writer.execute("UPDATE orders SET id = -id")
        said = await hint_listener.said()
        assert len(said) == 203
        assert {operation for operation, key, _ in said if key is None} == {
            "insert",
            "update",
            "delete",
        }


async def test_no_hint_is_sent_without_a_listener(orders: AsyncEngine) -> None:
    async with listening(orders) as hint_listener, connected(orders) as writer:
        await writer.execute("UPDATE orders SET status = 'x'")
        await writer.execute("TRUNCATE orders")
        assert await hint_listener.said() == []


async def test_a_writer_that_holds_the_lock_alone_is_no_listener(orders: AsyncEngine) -> None:
    async with (
        listening(orders) as hint_listener,
        connected(orders) as writer,
        connected(orders) as other,
    ):
        await other.execute("SELECT pg_advisory_lock(1919907699, b) FROM generate_series(0, 127) b")
        await writer.execute("UPDATE orders SET status = 'x'")
        assert await hint_listener.said() == []


async def test_always_does_not_ask(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(TABLE)
        await install_triggers(engine, "orders", always=True)
        async with listening(engine) as hint_listener:
            await writer.execute("INSERT INTO orders VALUES (1); TRUNCATE orders")
            assert await hint_listener.said() == [("insert", [1], None), ("truncate", None, None)]


@pytest.mark.parametrize(
    "settings",
    [{"columns": ["status"]}, {"exclude": ["amount", "note"]}],
    ids=lambda s: next(iter(s)),
)
async def test_only_columns_that_count_are_told(engine: AsyncEngine, settings: Any) -> None:
    async with connected(engine) as writer:
        await writer.execute(TABLE)
        await install_triggers(engine, "orders", **settings)
        async with listening(engine, "orders") as hint_listener:
            await writer.execute("INSERT INTO orders VALUES (1)")
            await writer.execute("UPDATE orders SET amount = 5")
            await writer.execute("UPDATE orders SET amount = 6, status = 'x'")
            await writer.execute("UPDATE orders SET amount = 6, id = 2")
            assert await hint_listener.said() == [
                ("insert", [1], None),
                ("update", [1], ["status"]),
                ("delete", [1], None),
                ("insert", [2], None),
            ]


async def test_a_key_too_long_for_a_payload_is_told_for_the_table(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute("CREATE TABLE long (id text PRIMARY KEY, v int)")
        await install_triggers(engine, "long")
        async with listening(engine, "long") as hint_listener:
            # 3900 letters of two bytes fit, 4000 do not: what counts is bytes
            await writer.execute("INSERT INTO long VALUES (repeat('é', 3900)), (repeat('é', 4000))")
            assert await hint_listener.said() == [
                ("insert", ["é" * 3900], None),
                ("insert", None, None),
            ]


async def test_names_are_quoted_and_keys_keep_their_order(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(
            """CREATE SCHEMA "My ""Schema"; CREATE TABLE "My ""Schema"."Odd 'Table'" (
            "B c" int, "a""'" text, "%s" int GENERATED ALWAYS AS ("B c" * 2) STORED, p point,
            PRIMARY KEY ("a""'", "B c"))"""
        )
        await install_triggers(engine, """My "Schema.Odd 'Table'""")
        async with listening(engine, """My "Schema.Odd 'Table'""") as hint_listener:
            await writer.execute("""INSERT INTO "My ""Schema"."Odd 'Table'" VALUES (1, 'x')""")
            await writer.execute("""UPDATE "My ""Schema"."Odd 'Table'" SET p = '(1,2)'""")
            (first, second) = await hint_listener.hints()
            assert (first["s"], first["n"], first["k"]) == ('My "Schema', "Odd 'Table'", ["x", 1])
            assert second["c"] == ["p"]


async def test_session_replication_role_silences_the_triggers(orders: AsyncEngine) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        await writer.execute("SET session_replication_role = replica; DELETE FROM orders")
        assert await hint_listener.said() == []


async def test_the_memory_of_another_transaction_or_table_does_not_count(
    orders: AsyncEngine,
) -> None:
    async with listening(orders, "orders") as hint_listener, connected(orders) as writer:
        row = "SELECT tgargs FROM pg_trigger WHERE tgname = 'rowsignal_hint'"
        token, bucket = (await writer.fetchval(row)).decode().split("\0")[:2]
        for xid, name in (("1", token), ("' || pg_current_xact_id() || '", "other@1")):
            async with writer.transaction():
                await writer.execute(
                    f"SELECT set_config('rowsignal.hints_{bucket}', '- {xid} {name}', true)"
                )
                await writer.execute("DELETE FROM orders WHERE id = (SELECT min(id) FROM orders)")
        assert await hint_listener.said() == [("delete", [1], None), ("delete", [2], None)]


async def test_a_later_listener_receives_later_writes(orders: AsyncEngine) -> None:
    async with connected(orders) as writer, writer.transaction():
        await writer.execute("UPDATE orders SET status = 'x' WHERE id = 1")
        async with listening(orders, "orders") as hint_listener:
            await writer.execute("UPDATE orders SET status = 'y' WHERE id = 2")
            assert await hint_listener.said() == []  # not committed
            await writer.execute("COMMIT")
            assert await hint_listener.said() == [("update", [2], ["status"])]
            await writer.execute("BEGIN")
