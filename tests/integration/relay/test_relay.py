"""What a relay publishes."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest
from nats.aio.client import Client

from rowsignal.exceptions import NotWatchedError, TriggerInstallError
from rowsignal.hooks import Hooks
from rowsignal.relay import Relay, RelayTimings, StreamSettings, subject_of
from rowsignal.relay.messages import POSITION, decode
from rowsignal.streams.loader import RowChange
from rowsignal.triggers import install_triggers
from support.change_log import Shop
from support.nats_server import NatsServer
from support.relays import QUICK, StreamReader, relaying


async def test_a_change_is_one_message_with_its_row_and_its_place(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(shop.engine, nats.url):
        first = await stream.next()
        await shop.insert(7)
        await shop.sql.execute("update item set v = 5")
        await shop.sql.execute("delete from item")
        inserted, updated, deleted = await stream.changes(3)
    assert first.operation == "checkpoint"
    database = shop.engine.url.database or ""
    assert inserted.subject == subject_of(database, ("public", "item"))
    assert inserted.body["row"] == {"id": 7, "v": 0}
    assert updated.body["changed"] == ["v"]
    assert updated.body["row"] == {"id": 7, "v": 5}
    assert deleted.operation == "delete"
    assert deleted.body["row"] is None
    places = [it.headers["Nats-Msg-Id"] for it in (inserted, updated, deleted)]
    assert places == [it.headers[POSITION] for it in (inserted, updated, deleted)]
    assert len(set(places)) == 3
    assert inserted.headers["Rowsignal-Transaction"].isdecimal()
    incarnation = await shop.sql.fetchval("select id from rowsignal.incarnation limit 1")
    assert inserted.headers["Rowsignal-Incarnation"] == str(incarnation)


async def test_a_relay_goes_on_where_the_last_one_ended(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(shop.engine, nats.url):
        await stream.next()
        await shop.insert(*range(1500))
        found = await stream.changes(1500)
    await shop.insert(*range(1500, 4000))
    async with relaying(shop.engine, nats.url):
        found += await stream.changes(2500)
        await shop.insert(4000)
        found += await stream.changes(1)
    assert [it.id for it in found] == list(range(4001))
    assert [it.sequence for it in found] == list(range(2, 4003))


async def test_no_digit_of_a_number_is_lost(
    shop: Shop, nats: NatsServer, stream: StreamReader, client: Client
) -> None:
    await shop.sql.execute("create table price (id integer primary key, amount numeric, note text)")
    await install_triggers(shop.engine, "public.price", log=True, row_values=True)
    async with relaying(shop.engine, nats.url, tables=["public.price"]):
        await stream.next()
        await shop.sql.execute(
            "insert into price values (1, 12345678901234567890.12345678901234567890, 'a\"b: 1.5')"
        )
        (stored,) = await stream.changes(1)
    raw = await client.jetstream().get_msg(stream.stream, stored.sequence)
    item = decode(raw.data or b"", raw.headers or {}, "p")
    assert isinstance(item, RowChange)
    assert item.row is not None
    assert item.row["amount"] == Decimal("12345678901234567890.12345678901234567890")
    assert item.row["note"] == 'a"b: 1.5'


async def test_rows_that_the_log_does_not_have_are_read(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    await shop.sql.execute("create table thin (id integer primary key, v text)")
    await install_triggers(shop.engine, "public.thin", log=True)
    async with relaying(shop.engine, nats.url, tables=["public.thin"]):
        await stream.next()
        await shop.sql.execute("insert into thin values (1, 'x')")
        (stored,) = await stream.changes(1)
    assert stored.body["row"] == {"id": 1, "v": "x"}


async def test_columns_that_are_not_carried_do_not_leave(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    await shop.sql.execute("create table person (id integer primary key, name text, salary int)")
    settings: dict[str, Any] = {"log": True, "row_values": True, "filter_columns": ["salary"]}
    await install_triggers(shop.engine, "public.person", **settings)
    async with relaying(shop.engine, nats.url, tables={"public.person": ["id", "name"]}):
        await stream.next()
        await shop.sql.execute("insert into person values (1, 'A', 100)")
        await shop.sql.execute("update person set salary = 200")
        found = await stream.changes(2)
    assert "salary" not in str([it.body for it in found])
    assert found[1].body["changed"] == []
    assert found[1].body["row"] == {"id": 1, "name": "A"}


async def test_a_row_larger_than_a_message_is_a_reset_of_its_table_and_the_rest_goes_on(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    await shop.sql.execute("create table big (id integer primary key, v text)")
    await install_triggers(shop.engine, "public.big", log=True, row_values=True)
    async with relaying(shop.engine, nats.url, tables=["public.big"]):
        await stream.next()
        await shop.sql.execute("insert into big values (1, repeat('x', 2000000))")
        await shop.sql.execute("insert into big values (2, 'y')")
        reset = await stream.until("reset")
        (stored,) = await stream.changes(1)
    assert reset.body["table"] == "big"
    assert "more bytes" in reset.body["reason"]
    assert stored.id == 2


async def test_a_new_log_is_a_reset(shop: Shop, nats: NatsServer, stream: StreamReader) -> None:
    async with relaying(shop.engine, nats.url):
        await stream.next()
        await shop.insert(1)
        await stream.changes(1)
        await shop.sql.execute("delete from rowsignal.incarnation")
        await shop.insert(2)
        reset = await stream.until("reset")
        await shop.insert(3)
        (stored,) = await stream.changes(1)
    assert "another log" in reset.body["reason"]
    assert stored.id == 3
    assert stored.headers["Rowsignal-Incarnation"] == reset.headers["Rowsignal-Incarnation"]


async def test_a_table_that_loses_its_triggers_is_a_reset_of_that_table(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(shop.engine, nats.url):
        await stream.next()
        await shop.sql.execute("drop trigger rowsignal_log_insert on item")
        reset = await stream.until("reset")
    assert reset.body["table"] == "item"
    assert reset.body["is_of_capture"] is True


async def test_a_stream_whose_messages_are_gone_begins_with_a_reset(
    shop: Shop, nats: NatsServer, stream: StreamReader, client: Client
) -> None:
    async with relaying(shop.engine, nats.url):
        await stream.next()
        await shop.insert(1)
        await stream.changes(1)
    await client.jetstream().purge_stream(stream.stream)
    async with relaying(shop.engine, nats.url):
        assert (await stream.until("reset")).sequence == 3
        await shop.insert(2)
        assert [it.id for it in await stream.changes(1)] == [2]


async def test_a_quiet_log_leaves_a_checkpoint(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    await shop.sql.execute("create table other (id integer primary key)")
    timings = RelayTimings(presence=0.1, takeover=0.5, checkpoint=0.0)
    async with relaying(shop.engine, nats.url, tables=["public.item"], timings=timings):
        first = await stream.next()
        await shop.sql.execute("insert into other values (1)")
        second = await stream.next()
    assert (first.operation, second.operation) == ("checkpoint", "checkpoint")


async def test_hooks_hear_of_what_is_stored(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    stored, active = [], []

    class Heard(Hooks):
        def relayed(self, *, database: str, count: int, lag: float) -> None:
            stored.append((count, lag))

        def relay_active(self, *, database: str, active: bool) -> None:
            actives.append(active)

    actives: list[bool] = active
    async with relaying(shop.engine, nats.url, hooks=Heard()):
        await stream.next()
        await shop.insert(*range(50))
        await stream.changes(50)
        await asyncio.sleep(0)
    assert actives == [True, False]
    assert sum(count for count, _ in stored) >= 1
    assert all(lag >= 0 for _, lag in stored)


async def test_the_stream_is_made_as_asked(
    shop: Shop, nats: NatsServer, stream: StreamReader, client: Client
) -> None:
    settings = StreamSettings(max_age=3600, max_bytes=10_000_000)
    async with relaying(shop.engine, nats.url, stream=settings):
        await stream.next()
    config = (await client.jetstream().stream_info(stream.stream)).config
    assert (config.max_age, config.max_bytes, config.num_replicas) == (3600, 10_000_000, 1)


async def test_what_cannot_be_relayed_is_refused(shop: Shop, nats: NatsServer) -> None:
    await shop.sql.execute("create table hinted (id integer primary key)")
    await install_triggers(shop.engine, "public.hinted")
    with pytest.raises(NotWatchedError, match="no change log"):
        await Relay(shop.engine, nats.url, tables=["public.hinted"], timings=QUICK).run()
    with pytest.raises(NotWatchedError, match="no table"):
        await Relay(shop.engine, nats.url, tables=["public.absent"], timings=QUICK).run()
    with pytest.raises(ValueError, match="at least one"):
        await Relay(shop.engine, nats.url, tables=[], timings=QUICK).run()
    with pytest.raises(ValueError, match="takeover"):
        RelayTimings(presence=2.0, takeover=1.0)


async def test_a_database_without_a_log_is_refused(engine: Any, nats: NatsServer) -> None:
    with pytest.raises(TriggerInstallError, match="No table has a change log"):
        await Relay(engine, nats.url, timings=QUICK).run()
