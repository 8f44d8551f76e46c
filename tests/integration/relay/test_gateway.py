"""Streams from NATS: the same surface as from PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import sqlalchemy as sa
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import PositionError
from rowsignal.relay import JetStreamSource
from rowsignal.relay.places import Place
from rowsignal.relay.stream_tail import StreamTail
from rowsignal.sse import Grant, TableGrant, create_sse_router
from support.event_streams import EventReader, execute, make_tables, reading
from support.gateways import gateway
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import published

CONNECTIONS = (
    "select count(*) from pg_stat_activity where datname = current_database()"
    " and backend_type = 'client backend'"  # autovacuum comes and goes
)
BREAKS = {
    "log": ("delete from rowsignal.incarnation", "another log"),
    "wal": ("alter publication rowsignal drop table orders", "not published"),
}
PATIENCE = 30.0
INSERT = "insert into orders (id, status, total, customer, secret) values"


@pytest.fixture(params=["log", "wal"])
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """Provide the name of a database whose orders and items are relayed, either way."""
    await make_tables(engine, row_values=True)
    async with AsyncExitStack() as stack:
        if request.param == "wal":
            await stack.enter_async_context(published(engine, "orders", "items"))
        await stack.enter_async_context(relaying(engine, nats.url, capture=request.param))
        await stream.next()
        yield engine.url.database or ""


async def _level(reader: EventReader) -> str:
    """Return the id of the first heartbeat that has one: from there on all is shown."""
    return (await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))).id


async def test_changes_arrive_with_their_rows(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as site, reading(site.port, "/changes/orders") as reader:
        await _level(reader)
        await execute(engine, f"{INSERT} (1, 'open', 12345678901234567890.10, 7, 'x')")
        inserted = await reader.until("insert")
        await execute(engine, "update orders set status = 'paid'")
        updated = await reader.until("update")
        await execute(engine, "delete from orders")
        deleted = await reader.until("delete")
    assert inserted.data["row"]["total"] == "12345678901234567890.10"
    assert inserted.key == 1
    assert updated.data["changed"] == ["status"]
    assert deleted.data["key"] == {"id": 1}
    sequences = [Place.parse(it.id).sequence for it in (inserted, updated, deleted)]
    assert sequences == [sequences[0] + step for step in range(3)]


async def test_filters_and_grants_hold_as_ever(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async def grant() -> Grant:
        columns = frozenset({"id", "status", "customer"})
        return Grant(tables={"public.orders": TableGrant(columns=columns, where=["customer.eq.1"])})

    async with (
        gateway(nats.url, relayed, authorize=grant) as site,
        reading(site.port, "/changes/orders?where=status.eq.open") as reader,
    ):
        await _level(reader)
        await execute(
            engine,
            f"{INSERT} (1, 'open', 1, 1, 'x'), (2, 'open', 1, 2, 'x'), (3, 'paid', 1, 1, 'x')",
            "update orders set status = 'paid' where id = 1",
            f"{INSERT} (4, 'open', 1, 1, 'x')",
        )
        found = [await reader.until("insert"), await reader.until("delete")]
        found.append(await reader.until("insert"))
        answer = await site.client.get("/changes/items")
    assert [it.key for it in found] == [1, 1, 4]
    assert set(found[0].data["row"]) == {"id", "status", "customer"}
    assert answer.status_code == 404


async def test_a_reader_resumes_at_another_gateway(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as one, gateway(nats.url, relayed) as other:
        async with reading(one.port, "/changes/orders") as reader:
            await _level(reader)
            await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x')")
            last = (await reader.until("insert")).id
        await execute(engine, f"{INSERT} (2, 'open', 1, 1, 'x')")
        headers = {"Last-Event-ID": last}
        async with reading(other.port, "/changes/orders", headers=headers) as reader:
            second = await reader.until("insert")
            await execute(engine, f"{INSERT} (3, 'open', 1, 1, 'x')")
            third = await reader.until("insert")
    assert [second.key, third.key] == [2, 3]


async def test_a_long_history_is_read_in_pages(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as site:
        async with reading(site.port, "/changes/orders") as reader:
            first = await _level(reader)
        values = "select n, 'open', 1, 1, 'x' from generate_series(1, 3500) n"
        await execute(engine, f"{INSERT.removesuffix(' values')} {values}")
    async with (
        gateway(nats.url, relayed) as fresh,
        reading(fresh.port, f"/changes/orders?after={first}") as reader,
    ):
        keys = [(await reader.until("insert")).key for _ in range(3500)]
    assert keys == list(range(1, 3501))


async def test_streams_need_no_connection_to_postgresql(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async def connections() -> int:
        async with engine.connect() as connection:
            return int(await connection.scalar(sa.text(CONNECTIONS)))

    async with AsyncExitStack() as stack:
        site = await stack.enter_async_context(gateway(nats.url, relayed))
        reader = await stack.enter_async_context(reading(site.port, "/changes/orders"))
        await _level(reader)
        await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x')")
        await reader.until("insert")  # the relay has opened what it needs
        before = await connections()
        for _ in range(3):
            site = await stack.enter_async_context(gateway(nats.url, relayed))
            reader = await stack.enter_async_context(reading(site.port, "/changes/orders"))
            await _level(reader)
        async with asyncio.timeout(PATIENCE):
            while await connections() > before:  # the relay looks at the catalogue now and then
                await asyncio.sleep(0.1)


async def test_without_a_database_rows_are_refused_with_the_way_out(
    relayed: str, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as site:
        snapshot = await site.client.get("/changes/orders?snapshot=true")
        waiting = await site.client.get("/wait/orders/1")
    assert [snapshot.status_code, waiting.status_code] == [501, 501]
    assert "database" in snapshot.json()["detail"]
    assert "database" in waiting.json()["detail"]


async def test_a_snapshot_goes_over_into_the_stream(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x'), (2, 'open', 1, 1, 'x')")
    async with (
        gateway(nats.url, relayed, engine=engine) as site,
        reading(site.port, "/changes/orders?snapshot=true") as reader,
    ):
        rows = [(await reader.until("snapshot")).key for _ in range(2)]
        end = await reader.until("snapshot-end")
        await _level(reader)
        await execute(engine, "update orders set status = 'paid' where id = 1")
        update = await reader.until("update")
        answer = await site.client.get("/wait/orders/1?timeout=0.2")
    assert sorted(rows) == [1, 2]
    assert end.data["rows"] == 2
    assert Place.parse(end.id).seen is not None
    assert Place.parse(update.id).seen is None
    assert answer.status_code == 204


async def test_a_relay_that_passes_a_snapshot_while_its_reader_reads_on_tells_nothing_twice(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_tables(engine, row_values=True)
    async with relaying(engine, nats.url):
        await stream.next()
    await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x'), (2, 'open', 1, 1, 'x')")
    read = StreamTail.read
    async with AsyncExitStack() as stack:
        relays = [relaying(engine, nats.url)]

        async def read_while_the_relay_goes_on(tail: StreamTail, after: int, until: int) -> object:
            found = await read(tail, after, until)
            if relays:
                await stack.enter_async_context(relays.pop())
                while tail.place.sequence < until + 2:
                    await tail.moved()
            return found

        monkeypatch.setattr(StreamTail, "read", read_while_the_relay_goes_on)
        site = await stack.enter_async_context(
            gateway(nats.url, engine.url.database or "", engine=engine)
        )
        reader = await stack.enter_async_context(
            reading(site.port, "/changes/orders?snapshot=true")
        )
        await reader.until("snapshot-end")
        await execute(engine, f"{INSERT} (3, 'open', 1, 1, 'x')")
        event = await reader.until("insert")
        assert relays == []
    assert event.key == 3


async def test_positions_of_others_are_told_apart(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as site:
        async with reading(site.port, "/changes/orders") as reader:
            place = Place.parse(await _level(reader))
        of_the_log = await _position(engine)
        for after, reason in (
            (f"nother.{place.sequence}", "another one"),
            (str(place.at(10**9)), "ahead"),
            (of_the_log, "change log itself"),
        ):
            async with reading(site.port, f"/changes/orders?after={after}") as reader:
                reset = await reader.until("reset")
                assert reason in reset.data["reason"]
        broken = await site.client.get("/changes/orders?after=n.1")
    assert broken.status_code == 422


async def _position(engine: AsyncEngine) -> str:
    from rowsignal.change_log import ChangeLog

    async with ChangeLog(engine) as log:
        return await log.position()


async def test_what_nats_has_discarded_is_a_reset(
    relayed: str, engine: AsyncEngine, nats: NatsServer, client: Client, stream: StreamReader
) -> None:
    async with (
        gateway(nats.url, relayed) as site,
        reading(site.port, "/changes/orders") as reader,
    ):
        first = await _level(reader)
    await execute(engine, *(f"{INSERT} ({n}, 'open', 1, 1, 'x')" for n in range(10)))
    await stream.changes(10)
    js = client.jetstream()
    config = (await js.stream_info(stream.stream)).config
    await js.update_stream(config.evolve(max_msgs=5))
    async with gateway(nats.url, relayed) as site:
        headers = {"Last-Event-ID": first}
        async with reading(site.port, "/changes/orders", headers=headers) as reader:
            reset = await reader.until("reset")
    assert "discarded" in reset.data["reason"]


async def test_a_relayed_reset_reaches_readers_and_those_that_resume(
    relayed: str, engine: AsyncEngine, nats: NatsServer, request: pytest.FixtureRequest
) -> None:
    break_capture, reason = BREAKS[request.node.callspec.params["relayed"]]
    async with gateway(nats.url, relayed) as site:
        async with reading(site.port, "/changes/orders") as reader:
            first = await _level(reader)
            await execute(engine, break_capture)
            await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x')")
            reset = await reader.until("reset")
        async with reading(site.port, f"/changes/orders?after={first}") as reader:
            again = await reader.until("reset")
    assert reason in reset.data["reason"]
    assert again.data["reason"] == reset.data["reason"]


async def test_a_column_that_is_not_carried_is_said(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> None:
    await make_tables(engine, row_values=True)
    carried = {"public.orders": ["id", "status"]}
    async with relaying(engine, nats.url, tables=carried):
        await stream.next()
        async with (
            gateway(nats.url, engine.url.database or "") as site,
            reading(site.port, "/changes/orders") as reader,
        ):
            await _level(reader)
            await execute(engine, f"{INSERT} (1, 'open', 1, 1, 'x')")
            reset = await reader.until("reset")
    assert "does not carry customer, secret, total" in reset.data["reason"]


async def test_a_database_that_is_not_relayed_is_said(nats: NatsServer) -> None:
    async with gateway(nats.url, "absent") as site:
        answer = await site.client.get("/changes/orders")
    assert answer.status_code == 503
    assert "rowsignal relay" in answer.json()["detail"]


async def test_nats_that_is_away_is_said(nats: NatsServer) -> None:
    await nats.kill()
    async with gateway(nats.url, "absent") as site:
        answer = await site.client.get("/changes/orders")
    assert answer.status_code == 503
    assert "NATS" in answer.json()["detail"]


def test_a_router_has_one_origin_of_changes() -> None:
    source = JetStreamSource("nats://127.0.0.1:1", "shop")
    with pytest.raises(ValueError, match="one of them"):
        create_sse_router()
    with pytest.raises(ValueError, match="at least one table"):
        create_sse_router(source=source)
    with pytest.raises(PositionError):
        source.check_position("n1.x")
    assert source.position is None
