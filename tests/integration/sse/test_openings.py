"""How streams begin: bounded by their token, fair to others, and not stopped by one odd row."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncEngine
from sse_starlette import EventSourceResponse

from rowsignal.change_log import ChangeLog
from rowsignal.change_log.positions import Position, Snapshot, decode
from rowsignal.listener import Listener
from rowsignal.sse import Grant, Limits, Outlet, TableGrant
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.views import TableView
from rowsignal.sse.delivery.outlet import SNAPSHOTS, SNAPSHOTS_EACH, StreamRequest
from rowsignal.sse.http.router import router_of
from support.event_streams import Order, execute, make_tables, reading
from support.web_server import Site, serving

ROWS = "/changes/orders?snapshot=true"
FILL = (
    "insert into orders select g, repeat(md5(g::text), 30), 1, 7, ''"
    " from generate_series(1, 10000) g"
)


@asynccontextmanager
async def site_of(
    engine: AsyncEngine, *, lifetime: float | None = None, offered: Any = None, **limits: Any
) -> AsyncIterator[tuple[Site, Outlet]]:
    """Serve orders to the principal named by `?user=`."""
    tables = offered or {Order: None}
    outlet = Outlet(engine, exposures_of(tables), Limits(heartbeat=0.3, **limits))

    def authorize(user: str = "somebody") -> Grant:
        expires_at = None if lifetime is None else time.time() + lifetime
        return Grant(tables={"*": TableGrant()}, principal=user, expires_at=expires_at)

    app = FastAPI()
    app.include_router(router_of(outlet, authorize))
    async with Listener(engine), serving(app) as site:
        yield site, outlet


@pytest.fixture
async def filled(engine: AsyncEngine) -> AsyncEngine:
    await make_tables(engine)
    await execute(engine, FILL)
    return engine


async def test_a_stream_is_the_response_of_its_ecosystem(engine: AsyncEngine) -> None:
    await make_tables(engine)
    outlet = Outlet(engine, exposures_of([Order]))
    response = await outlet.open(StreamRequest(views=(TableView(name="public.orders"),)))
    assert isinstance(response, EventSourceResponse)
    assert response.media_type == "text/event-stream"
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await response({"type": "http", "method": "GET"}, receive, send)
    assert sent[0]["status"] == 200
    assert not response.active
    assert outlet.fanout.readers == 0
    await outlet.aclose()


@pytest.mark.parametrize("begin", ["snapshot", "queue", "resume"])
async def test_a_token_that_ends_ends_what_the_stream_begins_with(filled, begin) -> None:
    lifetime = 5.0 if begin == "snapshot" else 1.0  # the snapshot has to begin before
    async with site_of(filled, lifetime=lifetime) as (site, outlet), AsyncExitStack() as stack:
        path = ROWS
        if begin == "queue":
            held = [outlet._snapshots.request("somebody") for _ in range(SNAPSHOTS)]
            stack.callback(lambda: [turn.release() for turn in held])
        if begin == "resume":
            async with ChangeLog(filled) as log:
                path = f"/changes/orders?after={await log.position()}"
            await execute(filled, "delete from orders", FILL)
            turns = [outlet._turns.request("other") for _ in range(4)]
            stack.callback(lambda: [turn.release() for turn in turns])
        async with reading(site.port, path, buffer=4096) as stream:
            await stream.until("heartbeat")
            if begin == "snapshot":
                await stream.until("snapshot")
                while outlet.fanout.readers and not any(it.is_closed for it in outlet._open):
                    await asyncio.sleep(0.05)
            rest = await stream.rest()
        if begin == "snapshot":  # the client did not take the rest of a frame in time
            assert "snapshot-end" not in {event.name for event in rest}
            return
        assert (rest[-1].name, rest[-1].data["reason"]) == ("bye", "token expired")
        assert "snapshot-end" not in {event.name for event in rest}


async def test_a_token_that_has_ended_opens_nothing(filled) -> None:
    async with (
        site_of(filled, lifetime=-1.0) as (site, _),
        reading(site.port, ROWS) as stream,
    ):
        assert {event.name for event in await stream.rest()} <= {"bye", "heartbeat"}


async def test_one_principal_does_not_stop_the_snapshots_of_others(filled) -> None:
    async with site_of(filled) as (site, _), AsyncExitStack() as stack:
        greedy = [
            await stack.enter_async_context(reading(site.port, f"{ROWS}&user=greedy", buffer=4096))
            for _ in range(60)
        ]
        for reader in greedy[:SNAPSHOTS_EACH]:
            await reader.until("snapshot")
        async with reading(site.port, f"{ROWS}&user=other&where=id.eq.1") as other:
            assert (await other.until("snapshot-end")).data["rows"] == 1


async def test_stalled_snapshot_readers_give_their_places_back(filled) -> None:
    async with site_of(filled, write_timeout=1.0) as (site, outlet), AsyncExitStack() as stack:
        for _ in range(30):
            reader = await stack.enter_async_context(reading(site.port, ROWS, buffer=4096))
            await reader.until("heartbeat")
        while outlet.fanout.readers:  # until the test's limit, where no place is given back
            await asyncio.sleep(0.1)


async def test_a_row_that_a_schema_refuses_is_passed_by_in_a_snapshot_and_after(engine) -> None:
    class Strict(BaseModel):
        id: int
        status: str

    await make_tables(engine)
    await execute(engine, "insert into orders values (1, 'a', 1, 7, ''), (2, null, 1, 7, '')")
    async with (
        site_of(engine, offered={Order: Strict}) as (site, _),
        reading(site.port, ROWS) as stream,
    ):
        assert (await stream.until("snapshot")).key == 1
        assert (await stream.until("reset")).data["continues"]
        await stream.until("snapshot-end")
        await execute(engine, "insert into orders values (3, null, 1, 7, ''), (4, 'd', 1, 7, '')")
        assert (await stream.until("reset")).data["continues"]
        assert (await stream.until("insert")).key == 4


async def test_positions_made_up_by_a_reader_are_not_kept(engine) -> None:
    await make_tables(engine)
    async with ChangeLog(engine) as log:
        here = decode(await log.position())
    assert isinstance(here, Position)
    running = tuple(range(here.seen.xmax - 600, here.seen.xmax - 1))
    forged = Position(here.incarnation, Snapshot(here.seen.xmax, running)).encode()
    await execute(engine, *[f"insert into orders values ({n}, '', 1, 7, '')" for n in range(2)])
    async with site_of(engine) as (site, _):
        for _ in range(5):
            path = f"/changes/orders?after={forged}"
            async with reading(site.port, path) as stream:
                assert stream.status in {200, 422}
                if stream.status == 200:
                    await stream.until(lambda event: event.name in {"reset", "insert"})
    async with engine.connect() as connection:
        kept = await connection.exec_driver_sql("select count(*) from rowsignal.stored_position")
        assert kept.scalar_one() == 0
