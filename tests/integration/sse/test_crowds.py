"""Readers that are slow, stalled, many or hostile, and what the others notice of it: nothing."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import log as change_log
from rowsignal.change_log import reader as log_reader
from rowsignal.listener import Listener
from rowsignal.sse import Limits, Outlet
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.grants import grant_everything
from rowsignal.sse.delivery import distribution, joining
from rowsignal.sse.delivery.buffers import ConflatingReader, Reader
from rowsignal.sse.delivery.distribution import AT_ONCE
from rowsignal.sse.delivery.outlet import SNAPSHOTS_EACH
from rowsignal.sse.frames import heartbeat, reset
from rowsignal.sse.http import long_poll
from rowsignal.sse.http.router import router_of
from support.event_streams import EventReader, Order, execute, make_tables, reading
from support.proxy import proxied
from support.web_server import Site, serving

CROWD = 200
ROWS = "/v1/changes/orders?snapshot=true"
BIG = "repeat(md5(g::text), 30)"  # about a kilobyte
ROOMY = 2**20  # a batch of 400 big rows and a heartbeat fit, also when the machine is busy


@pytest.fixture
async def outlet(engine, request):
    """Provide an outlet with small buffers; its parameter has the other limits."""
    await make_tables(engine)
    others = {"max_buffer_bytes": 64 * 1024, **getattr(request, "param", {})}
    limits = Limits(heartbeat=0.5, write_interval=0.005, max_streams_per_principal=CROWD, **others)
    return Outlet(engine, exposures_of([Order]), limits)


@asynccontextmanager
async def open_site(engine: AsyncEngine, outlet: Outlet) -> AsyncIterator[Site]:
    app = FastAPI()
    app.include_router(router_of(outlet, grant_everything), prefix="/v1")
    async with Listener(engine), serving(app) as site:
        yield site


@pytest.fixture
async def site(engine, outlet):
    async with open_site(engine, outlet) as site:
        yield site


async def fill(engine, first: int, last: int) -> None:
    rows = f"select g, {BIG}, 1, 7, '' from generate_series({first}, {last}) g"
    await execute(engine, f"insert into orders {rows}")


@pytest.mark.parametrize("outlet", [{"max_buffer_bytes": ROOMY}], indirect=True)
async def test_a_reader_that_falls_behind_is_reset_and_others_are_not_affected(
    site, outlet, engine
):
    async with (
        reading(site.port, "/v1/changes/orders", buffer=4096) as slow,
        reading(site.port, "/v1/changes/orders") as quick,
    ):
        await slow.until(lambda event: event.id != "")
        await quick.until(lambda event: event.id != "")
        for batch in range(16):
            await fill(engine, batch * 400, batch * 400 + 399)
            await quick.until(lambda event, last=batch * 400 + 399: event.key == last)
        assert outlet.fanout.counts.overflows == 1
        rest = await slow.rest()
        assert rest[-1].name == "reset"
        assert "behind" in rest[-1].data["reason"]
        told = [event.key for event in quick.events if event.name == "insert"]
        assert told == list(range(6400))


@pytest.mark.parametrize(
    "outlet", [{"write_timeout": 1.0, "max_buffer_bytes": ROOMY}], indirect=True
)
async def test_a_stalled_reader_loses_its_place(site, outlet, engine):
    async with reading(site.port, "/v1/changes/orders", buffer=4096) as stalled:
        await stalled.until(lambda event: event.id != "")
        async with reading(site.port, "/v1/changes/orders") as other:
            await other.until(lambda event: event.id != "")
            batch = 0
            while outlet.fanout.readers == 2:
                await fill(engine, batch * 400, batch * 400 + 399)
                await other.until(lambda event, last=batch * 400 + 399: event.key == last)
                batch += 1
                await other.until("heartbeat")
        assert batch < 20


@asynccontextmanager
async def reading_rows_slowly(port: int) -> AsyncIterator[list[EventReader]]:
    """Open as many snapshots as one principal may read at once, and take a little of each."""
    async with AsyncExitStack() as stack:
        slow = [
            await stack.enter_async_context(reading(port, ROWS, buffer=4096))
            for _ in range(SNAPSHOTS_EACH)
        ]
        for reader in slow:
            await reader.until("snapshot")
        yield slow


async def test_readers_who_resume_do_not_wait_for_those_who_take_rows_slowly(site, engine):
    async with reading(site.port, "/v1/changes/orders") as first:
        await first.until(lambda event: event.id != "")
        place = {"Last-Event-ID": first.last_id}
    await fill(engine, 1, 10_000)
    async with reading_rows_slowly(site.port):
        await execute(engine, "delete from orders where id < 10000")
        async with reading(site.port, "/v1/changes/orders", headers=place) as resumed:
            await resumed.until(lambda event: (event.name, event.key) == ("delete", 1))


async def test_a_reader_that_waits_for_a_snapshot_gets_heartbeats(site, engine):
    await fill(engine, 1, 10_000)
    async with reading_rows_slowly(site.port) as slow, reading(site.port, ROWS) as patient:
        for _ in range(3):  # the first is the greeting
            await patient.until("heartbeat")
        assert {event.name for event in patient.events} == {"heartbeat"}
        slow[0].cut()
        assert (await patient.until("snapshot-end")).data["rows"] == 10_000


@pytest.mark.parametrize("outlet", [{"snapshot": 3.0}], indirect=True)
async def test_a_reader_that_takes_rows_too_slowly_gets_a_reset(site, engine):
    await fill(engine, 1, 10_000)
    async with reading_rows_slowly(site.port) as slow:
        await asyncio.sleep(3)
        ends = [(await reader.rest())[-1] for reader in slow]
        assert {(end.name, "fewer" in end.data["reason"]) for end in ends} == {("reset", True)}
        async with reading(site.port, f"{ROWS}&where=id.lte.10") as quick:
            assert (await quick.until("snapshot-end")).data["rows"] == 10


@pytest.fixture
async def far_site(server, engine, monkeypatch):
    """Provide a site whose way to the database can be cut, and the way."""
    for module in (log_reader, change_log, long_poll):
        monkeypatch.setattr(module, "ANSWER", 2.0)
    await make_tables(engine)
    await fill(engine, 1, 10_000)
    folder = server.dsn.partition("host=")[2]
    async with proxied(f"{folder}/.s.PGSQL.5432") as proxy:
        place = f"127.0.0.1:{proxy.port}/{engine.url.database}"
        far = create_async_engine(f"postgresql+asyncpg://postgres@{place}")
        outlet = Outlet(far, exposures_of([Order]), Limits(heartbeat=0.5, snapshot=2.0))
        async with open_site(far, outlet) as site:
            yield site, proxy
            await proxy.cut()
        await far.dispose()


async def test_a_snapshot_whose_connection_dies_without_a_word_is_given_up(far_site):
    site, proxy = far_site
    async with reading(site.port, ROWS, buffer=4096) as cut:
        await cut.until("snapshot")
        proxy.abandon()
        assert (await cut.rest())[-1].name == "reset"


async def test_a_long_poll_whose_connection_has_died_without_a_word_is_answered(far_site):
    site, proxy = far_site
    assert (await site.client.get("/v1/wait/orders/1?timeout=0.05")).status_code == 204
    proxy.abandon()
    answers = [await site.client.get("/v1/wait/orders/1?timeout=0.05") for _ in range(2)]
    # a connection that the end of the poll before has closed is replaced without an error
    assert [answer.status_code for answer in answers] in ([503, 204], [204, 204])


async def test_conflation_keeps_the_newest_of_each_row(site, outlet, engine):
    await execute(engine, "insert into orders select g, '', 1, 7, '' from generate_series(1, 20) g")
    async with reading(site.port, "/v1/changes/orders?conflate=true", buffer=4096) as slow:
        await slow.until(lambda event: event.id != "")
        for turn in range(200):
            await execute(engine, f"update orders set status = '{turn} ' || repeat('x', 900)")
        await execute(engine, "insert into orders values (999, 'end', 1, 7, '')")
        await slow.until(lambda event: event.key == 999)
        newest = {event.key: event.data["row"]["status"] for event in slow.events if event.key}
        updates = sum(event.name == "update" for event in slow.events)
    assert {status.split()[0] for key, status in newest.items() if key != 999} == {"199"}
    assert 20 <= updates < 4000
    assert outlet.fanout.counts.overflows == 0


async def test_many_readers_connect_at_once_and_all_are_told(site, outlet, engine):
    async def follow(number: int) -> list[int]:
        query = "" if number % 2 else "?where=total.lt.100"
        async with reading(site.port, f"/v1/changes/orders{query}") as stream:
            await stream.until(lambda event: event.id != "")
            ready.release()
            await stream.until(lambda event: event.key == 50)
            return [event.key for event in stream.events if event.name == "insert"]

    ready = asyncio.Semaphore(0)
    following = [asyncio.create_task(follow(number)) for number in range(CROWD)]
    for _ in range(CROWD):
        await ready.acquire()
    for key in range(1, 51):
        total = 100 if key % 10 == 0 and key < 50 else 1
        await execute(engine, f"insert into orders values ({key}, '', {total}, 7, '')")
    everything, cheap = list(range(1, 51)), [key for key in range(1, 51) if key % 10 or key == 50]
    for number, told in enumerate(await asyncio.gather(*following)):
        assert told == (everything if number % 2 else cheap)
    counts = outlet.fanout.counts
    assert counts.delivered == CROWD // 2 * (len(everything) + len(cheap))
    while outlet.fanout.readers:
        await asyncio.sleep(0.01)


async def test_forged_notifications_change_nothing(site, engine):
    async with reading(site.port, "/v1/changes/orders") as stream:
        await stream.until(lambda event: event.id != "")
        for payload in ("", "nonsense", '{"t": "public.orders", "o": "delete", "k": [1]}'):
            await execute(
                engine,
                f"select pg_notify('rowsignal', '{payload}')".replace(":", "\\:"),
                f"select pg_notify('rowsignal_log', '{payload}')".replace(":", "\\:"),
            )
        await execute(engine, "insert into orders values (1, '', 1, 7, '')")
        assert (await stream.until(lambda event: event.name != "heartbeat")).key == 1


async def test_positions_behind_the_horizon_are_a_reset(site, engine):
    from rowsignal.retention import Retention, prune

    async with reading(site.port, "/v1/changes/orders") as stream:
        place = (await stream.until(lambda event: event.id != "")).id
    await fill(engine, 1, 5)
    for _ in range(2):
        await prune(engine, Retention(max_age=0, max_bytes=0))
    async with reading(site.port, f"/v1/changes/orders?after={place}") as stream:
        assert "pruned" in (await stream.until("reset")).data["reason"]


@pytest.mark.parametrize("outlet", [{"max_buffer_bytes": 4 * ROOMY}], indirect=True)
async def test_other_tasks_run_between_the_parts_of_a_large_transaction(engine, outlet, site):
    """A batch of the log has up to 1,000 changes: at once they would hold up every reader."""
    turns = 0
    flushes: list[tuple[int, int]] = []

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with reading(site.port, "/v1/changes/orders") as reader:
        await reader.until("heartbeat")
        outlet.fanout.flushed = lambda events: flushes.append((turns, len(events)))
        counting = asyncio.create_task(count_turns())
        values = "select g, 'open', 1, 7, '' from generate_series(1, 3000) g"
        await execute(engine, f"insert into orders {values}")
        keys = [(await reader.until("insert")).key for _ in range(3000)]
        counting.cancel()
    assert keys == list(range(1, 3001))
    assert sum(count for _, count in flushes) == 3000
    assert max(count for _, count in flushes) < 2 * AT_ONCE
    moments = [moment for moment, _ in flushes]
    assert len(set(moments)) == len(moments), "two parts without a turn between them"


async def test_a_reader_for_which_too_much_is_held_reads_on_in_the_log(
    engine, site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(distribution, "MAX_HELD", 0)
    show, late_rows = joining._show, [4, 5]
    async with reading(site.port, "/v1/changes/orders") as live:

        async def show_while_more_comes(*arguments):
            chunk = await show(*arguments)
            if late_rows:
                number = late_rows.pop(0)
                await fill(engine, number, number)
                await live.until(lambda event: event.key == number)
            return chunk

        place = (await live.until(lambda event: event.id != "")).id
        await fill(engine, 1, 3)
        monkeypatch.setattr(joining, "_show", show_while_more_comes)
        async with reading(site.port, f"/v1/changes/orders?after={place}") as reader:
            keys = [(await reader.until("insert")).key for _ in range(5)]
            await fill(engine, 6, 6)
            keys.append((await reader.until("insert")).key)
    assert keys == [1, 2, 3, 4, 5, 6]
    assert late_rows == []


def test_a_buffer_is_bounded_and_what_it_held_is_not_sent_in_part():
    reader = Reader(limit=1000)
    reader.push(b"x" * 600)
    reader.push(b"y" * 600)
    reader.push(b"z")
    assert reader.take() == reset("This reader fell more than 1000 bytes behind.")
    assert reader.arrival() is None
    assert reader.take() == b""


def test_a_conflating_buffer_moves_the_newest_to_the_end():
    reader = ConflatingReader(limit=1000)
    beat = heartbeat(1.0)
    reader.push(b"", [("a", b"a1"), ("b", b"b2")])
    reader.push(beat)
    reader.push(b"", [("a", b"a3")])
    assert reader.conflated == 1
    assert reader.take() == b"b2" + beat + b"a3"
