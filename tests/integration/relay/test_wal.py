"""What a relay publishes that reads the WAL."""

import os
from contextlib import AsyncExitStack
from typing import Any

import pytest
from nats.aio.client import Client

from rowsignal.doctor import Severity, diagnose
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import NotWatchedError
from rowsignal.relay import Relay, subject_of
from rowsignal.relay.messages import POSITION
from rowsignal.relay.positions import WalPosition
from rowsignal.triggers import install_triggers
from support.nats_server import NatsServer
from support.relays import StreamReader, relay_process, relaying
from support.wal import WalShop, separate_wal_shop


async def test_a_change_is_one_message_with_its_row_and_its_place(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        first = await stream.next()
        await wal_shop.insert(7)
        await wal_shop.sql.execute("update item set v = 5")
        await wal_shop.sql.execute("delete from item")
        inserted, updated, deleted = await stream.changes(3)
    assert first.operation == "checkpoint"
    database = wal_shop.engine.url.database or ""
    assert inserted.subject == subject_of(database, ("public", "item"))
    assert inserted.body["row"] == {"id": 7, "v": 0}
    assert updated.body["changed"] == ["v"]
    assert updated.body["row"] == {"id": 7, "v": 5}
    assert updated.body["old"] == {"id": 7, "v": 0}
    assert deleted.operation == "delete"
    assert deleted.body["row"] is None
    assert deleted.body["old"] == {"id": 7, "v": 5}
    places = [it.headers["Nats-Msg-Id"] for it in (inserted, updated, deleted)]
    assert places == [it.headers[POSITION] for it in (inserted, updated, deleted)]
    assert len(set(places)) == 3
    assert inserted.headers["Rowsignal-Transaction"].isdecimal()
    system = await wal_shop.sql.fetchval("select system_identifier from pg_control_system()")
    assert inserted.headers["Rowsignal-Incarnation"] == str(system)


async def _relayed(
    shop: WalShop, nats: NatsServer, stream: StreamReader, count: int, *statements: str
) -> list[Any]:
    """Return the messages of some statements."""
    async with relaying(shop.engine, nats.url, capture="wal"):
        assert (await stream.next()).operation == "checkpoint"
        for statement in statements:
            await shop.sql.execute(statement)
        return [await stream.next() for _ in range(count)]


def _operations(found: list[Any]) -> list[tuple[str, Any]]:
    return [(it.operation, it.body.get("key")) for it in found]


async def test_a_relay_goes_on_where_the_last_one_ended(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        await wal_shop.insert(*range(1500))
        found = await stream.changes(1200)
    await wal_shop.insert(*range(1500, 4000))
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        found += await stream.changes(2800)
        await wal_shop.insert(4000)
        found += await stream.changes(1)
    assert [it.id for it in found] == list(range(4001))
    assert [it.sequence for it in found] == list(range(2, 4003))


async def test_what_was_written_after_the_installation_is_relayed(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.insert(1)
    found = await _relayed(wal_shop, nats, stream, 1)
    assert [it.id for it in found] == [1]


async def test_without_a_full_identity_there_are_keys_and_no_old_values(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.sql.execute("alter table item replica identity default")
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        5,
        "insert into item values (1, 0)",
        "update item set v = 1",
        "update item set id = 2",
        "delete from item",
    )
    assert _operations(found) == [
        ("insert", {"id": 1}),
        ("update", {"id": 1}),
        ("delete", {"id": 1}),
        ("insert", {"id": 2}),
        ("delete", {"id": 2}),
    ]
    assert [it.body["changed"] for it in found] == [None] * 5
    assert [it.body["old"] for it in found] == [None] * 5


@pytest.mark.parametrize("is_full", [True, False])
async def test_a_large_value_that_was_not_touched_is_not_invented(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader, is_full: bool
) -> None:
    await wal_shop.sql.execute("create table large (id integer primary key, v integer, note text)")
    await wal_shop.sql.execute("alter table large alter note set storage external")
    if is_full:
        await wal_shop.sql.execute("alter table large replica identity full")
    await wal_shop.capture("public.large")
    _, updated, renoted = await _relayed(
        wal_shop,
        nats,
        stream,
        3,
        "insert into large values (1, 0, repeat('x', 10000))",
        "update large set v = 1",
        "update large set note = repeat('y', 10000)",
    )
    row = {"id": 1, "v": 1}
    if is_full:
        assert updated.body["row"] == {**row, "note": "x" * 10000}
        assert updated.body["changed"] == ["v"]
        assert "absent" not in updated.body
    else:
        assert updated.body["row"] == row
        assert updated.body["absent"] == ["note"]
    assert renoted.body["row"] == {**row, "note": "y" * 10000}


async def test_an_emptied_table_is_a_truncate(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.sql.execute("create table other (id integer primary key references item)")
    await wal_shop.capture("public.other")
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        3,
        "begin; truncate item cascade; insert into item values (1, 0); commit",
    )
    tables = {it.body["table"] for it in found[:2]}
    assert tables == {"item", "other"}
    assert [it.operation for it in found] == ["truncate", "truncate", "insert"]
    assert len({it.headers["Nats-Msg-Id"] for it in found}) == 3


async def _partitioned(shop: WalShop) -> None:
    await shop.sql.execute(
        "create table part (id integer primary key, v integer) partition by range (id);"
        "create table part_low partition of part for values from (0) to (10);"
        "create table part_high (v integer, id integer not null primary key);"
        "alter table part attach partition part_high for values from (10) to (20)"
    )
    await shop.capture("public.part")


async def test_changes_of_partitions_are_those_of_their_root(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await _partitioned(wal_shop)
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        6,
        "insert into part values (1, 5), (11, 6)",
        "update part_high set v = 7",
        "update part set id = 12 where id = 1",
        "truncate part",
    )
    assert _operations(found) == [
        ("insert", {"id": 1}),
        ("insert", {"id": 11}),
        ("update", {"id": 11}),
        ("delete", {"id": 1}),
        ("insert", {"id": 12}),
        ("truncate", None),
    ]
    assert {it.body["table"] for it in found} == {"part"}
    assert found[2].body["row"] == {"id": 11, "v": 7}


async def test_an_emptied_partition_is_a_reset_of_its_table_where_it_lies(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await _partitioned(wal_shop)
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        3,
        "insert into part values (1, 5)",
        "truncate part_low",
        "insert into part values (2, 5)",
    )
    assert [it.operation for it in found] == ["insert", "reset", "insert"]
    assert found[1].body["table"] == "part"


async def test_a_new_partition_is_told_and_its_changes_too(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await _partitioned(wal_shop)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        await wal_shop.sql.execute(
            "create table part_more partition of part for values from (20) to (30);"
            "insert into part values (21, 1)"
        )
        found = {it.operation: it for it in [await stream.next(), await stream.next()]}
    assert found["insert"].body["table"] == "part"
    assert found["reset"].body["table"] == "part"


async def test_a_dropped_partition_is_a_reset_of_its_table(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await _partitioned(wal_shop)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
    await wal_shop.sql.execute("insert into part values (1, 1); drop table part_low")
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        reset = await stream.until("reset")
    assert reset.body["table"] == "part"
    assert "dropped" in reset.body["reason"]


async def test_columns_come_go_and_change_in_the_middle_of_the_stream(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        4,
        "insert into item values (1, 0)",
        "alter table item add note text default 'n'; insert into item values (2, 0, 'x')",
        "alter table item drop v; insert into item values (3, 'y')",
        "alter table item alter note drop default, alter note type integer using 7;"
        "update item set note = 8 where id = 3",
    )
    assert found[0].body["row"].items() <= {"id": 1, "v": 0}.items()
    assert found[1].body["row"] | {"v": 0} == {"id": 2, "v": 0, "note": "x"}
    assert [it.body["row"] for it in found[2:]] == [{"id": 3, "note": "y"}, {"id": 3, "note": 8}]


async def test_a_table_that_loses_its_identity_or_publication_is_a_reset_of_that_table(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        await wal_shop.sql.execute("alter publication rowsignal drop table item")
        gone = await stream.until("reset")
        await wal_shop.sql.execute("alter publication rowsignal add table item")
        back = await stream.until("reset")
        await wal_shop.insert(1)
        (inserted,) = await stream.changes(1)
    assert "not published" in gone.body["reason"]
    assert "told again" in back.body["reason"]
    assert gone.body["is_of_capture"] is True
    assert inserted.id == 1


async def test_only_the_columns_that_are_carried_leave(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(wal_shop.engine, nats.url, capture="wal", tables={"public.item": ["id"]}):
        await stream.next()
        await wal_shop.insert(1)
        await wal_shop.sql.execute("update item set v = 987654321")
        found = await stream.changes(2)
    assert "987654321" not in str([it.body for it in found])
    assert found[1].body["changed"] == []


async def test_a_dropped_slot_is_a_reset_and_a_new_slot(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.insert(1)
    await _relayed(wal_shop, nats, stream, 1)
    await wal_shop.drop_slot()
    await wal_shop.insert(2)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        reset = await stream.next()
        await wal_shop.insert(3)
        (inserted,) = await stream.changes(1)
    assert reset.operation == "reset"
    assert "slot" in reset.body["reason"]
    assert inserted.id == 3


async def test_a_slot_that_was_made_anew_by_another_is_a_reset(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.insert(1)
    await _relayed(wal_shop, nats, stream, 1)
    await wal_shop.drop_slot()
    await wal_shop.insert(2)
    await wal_shop.capture("public.item")
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        reset = await stream.next()
        await wal_shop.insert(3)
        (inserted,) = await stream.changes(1)
    assert "begins after" in reset.body["reason"]
    assert inserted.id == 3


async def test_a_stream_whose_messages_are_gone_begins_with_a_reset(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader, client: Client
) -> None:
    await wal_shop.insert(1)
    await _relayed(wal_shop, nats, stream, 1)
    await client.jetstream().purge_stream(stream.stream)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        assert (await stream.until("reset")).sequence == 3
        await wal_shop.insert(2)
        assert [it.id for it in await stream.changes(1)] == [2]


async def test_a_change_from_the_log_to_the_wal_and_back_is_a_reset(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await install_triggers(wal_shop.engine, "public.item", log=True, row_values=True)
    async with relaying(wal_shop.engine, nats.url):
        await stream.next()
        await wal_shop.insert(1)
        await stream.changes(1)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        to_wal = await stream.until("reset")
        await wal_shop.insert(2)
        assert [it.id for it in await stream.changes(1)] == [2]
    async with relaying(wal_shop.engine, nats.url):
        back = await stream.until("reset")
        await wal_shop.insert(3)
        assert [it.id for it in await stream.changes(1)] == [3]
    assert "another way" in to_wal.body["reason"]
    assert "another way" in back.body["reason"]


async def test_the_slot_moves_on_while_only_other_tables_are_written(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    await wal_shop.sql.execute("create table noise (v text)")
    fill = "insert into noise select repeat(md5(n::text), 30) from generate_series(1, 25000) n"
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        before = WalPosition.parse(stream.messages[0].headers[POSITION])
        await wal_shop.sql.execute(fill)
        checkpoint = await stream.next()
    after = WalPosition.parse(checkpoint.headers[POSITION])
    assert checkpoint.operation == "checkpoint"
    assert after.lsn - before.lsn > 16 * 2**20


async def test_a_large_transaction_takes_bounded_memory(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    count = 1_000_000 if "ROWSIGNAL_STRESS" in os.environ else 60_000
    async with relay_process(wal_shop.engine, nats.url, "--capture", "wal") as relay:
        await stream.next()
        await wal_shop.insert(0)
        await stream.changes(1)
        before = relay.peak_memory()
        await wal_shop.sql.execute(
            "insert into item select n, n from generate_series(1, $1::integer) n", count
        )
        for number in range(1, count + 1):
            (message,) = await stream.changes(1)  # a checkpoint may come while it is written
            assert message.id == number
            stream.messages.clear()
        assert relay.peak_memory() - before < 30 * 2**20


async def test_messages_for_other_prefixes_are_left_alone(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    found = await _relayed(
        wal_shop,
        nats,
        stream,
        2,
        "select pg_logical_emit_message(true, 'other', 'x')",
        "insert into item values (1, 0)",
        "select pg_logical_emit_message(false, 'rowsignal', '')",
    )
    assert [it.operation for it in found] == ["insert", "checkpoint"]


async def test_a_relay_without_a_publication_says_how_to_make_one(
    wal_shop: WalShop, nats: NatsServer
) -> None:
    await wal_shop.sql.execute("drop publication rowsignal")
    with pytest.raises(NotWatchedError, match="rowsignal relay install"):
        await Relay(wal_shop.engine, nats.url, capture="wal").run()


async def test_a_table_that_is_not_published_is_refused(
    wal_shop: WalShop, nats: NatsServer
) -> None:
    await wal_shop.sql.execute("create table other (id integer primary key)")
    relay = Relay(wal_shop.engine, nats.url, capture="wal", tables=["public.other"])
    with pytest.raises(NotWatchedError, match=r"rowsignal relay install public\.other"):
        await relay.run()


async def test_an_unknown_capture_is_refused(wal_shop: WalShop) -> None:
    with pytest.raises(ValueError, match="'log' or 'wal'"):
        Relay(wal_shop.engine, "nats://localhost", capture="trigger")  # type: ignore[arg-type]


async def test_a_server_that_lost_the_wal_is_a_reset_and_a_new_slot(
    nats: NatsServer, client: Client
) -> None:
    settings = {
        "max_slot_wal_keep_size": "1MB",
        "max_wal_size": "32MB",
        "min_wal_size": "32MB",
        "wal_keep_size": "0",
    }
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedPostgres(settings=settings))
        shop = await stack.enter_async_context(separate_wal_shop(server))
        stream = StreamReader(client, "postgres")
        await _relayed(shop, nats, stream, 1, "insert into item values (1, 0)")
        await shop.sql.execute("create table noise (v text)")
        while (await shop.slot())["wal_status"] != "lost":
            await shop.sql.execute("insert into noise select repeat('x', 2000000)")
            await shop.sql.execute("select pg_switch_wal()")
            await shop.sql.execute("checkpoint")
        await shop.insert(2)
        told = {it.subject: it for it in await diagnose(shop.engine)}
        assert told["slot rowsignal_postgres"].severity is Severity.ERROR
        async with relaying(shop.engine, nats.url, capture="wal"):
            reset = await stream.next()
            await shop.insert(3)
            (inserted,) = await stream.changes(1)
        assert "max_slot_wal_keep_size" in reset.body["reason"]
        assert inserted.id == 3
