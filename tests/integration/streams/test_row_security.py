"""Row-level security: a reader sees no row, key or delete of a row that its role may not see."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import ChangeLog
from rowsignal.changes import Change, Operation, Reset
from rowsignal.listener import Listener
from rowsignal.sse import Limits, create_sse_router
from rowsignal.streams import ChangeStream, watch
from support.change_log import connect
from support.event_streams import Order, make_tables, reading
from support.web_server import serving

POLICY = """
create role tenant login;
grant usage on schema public, rowsignal to tenant;
grant select on all tables in schema public, rowsignal to tenant;
grant execute on all functions in schema rowsignal to tenant;
alter table orders enable row level security;
create policy mine on orders using (customer = 7);
"""
ROW = "insert into orders values ({}, '', 1, {}, '')"


@pytest.fixture(params=["values", "log", "hints"])
async def writer(
    engine: AsyncEngine, request: pytest.FixtureRequest
) -> AsyncIterator[asyncpg.Connection]:
    settings = {"row_values": True} if request.param == "values" else {}
    await make_tables(engine, log=request.param != "hints", **settings)
    if request.param != "hints":
        async with ChangeLog(engine) as log:  # begins the log, which this role may not
            await log.position()
    writer = await connect(engine)
    await writer.execute(POLICY)
    yield writer
    await writer.execute("drop policy mine on orders; drop owned by tenant; drop role tenant")
    await writer.close()


@pytest.fixture
async def tenant(engine: AsyncEngine, writer: asyncpg.Connection) -> AsyncIterator[AsyncEngine]:
    role = {"server_settings": {"role": "tenant"}}
    restricted = create_async_engine(engine.url, connect_args=role)
    async with Listener(restricted):
        yield restricted
    await restricted.dispose()


async def following(stream: ChangeStream) -> Change | Reset:
    async with asyncio.timeout(30):
        return await anext(stream)


async def write_both(writer: asyncpg.Connection) -> None:
    """Insert and delete a row of each tenant, and end with one that is seen."""
    await writer.execute(ROW.format(1, 8))
    await writer.execute(ROW.format(2, 7))
    await writer.execute("update orders set status = 'x' where id = 1")


@pytest.mark.parametrize("rows", [True, False])
async def test_watch_tells_only_of_visible_rows(writer, tenant, rows) -> None:
    async with watch(tenant, Order, rows=rows) as changes:
        await write_both(writer)
        inserted = await following(changes)
        assert (inserted.operation, inserted.key) == (Operation.INSERT, {"id": 2})
        assert (inserted.row is not None) == rows
        await writer.execute("delete from orders")
        await writer.execute(ROW.format(3, 7))
        deleted, last = await following(changes), await following(changes)
        assert (deleted.operation, deleted.key) == (Operation.DELETE, {"id": 2})
        assert last.key == {"id": 3}


@pytest.mark.parametrize("writer", ["values", "log"], indirect=True)
async def test_a_reader_that_resumes_is_reset_where_its_history_is_unknown(writer, tenant) -> None:
    async with watch(tenant, Order) as changes:
        position = changes.position
    await writer.execute(ROW.format(1, 8))
    await writer.execute("delete from orders")
    async with watch(tenant, Order, after=position) as changes:
        reset = await following(changes)
        assert isinstance(reset, Reset)
        assert "row-level security" in reset.reason
        await writer.execute(ROW.format(2, 7))
        assert (await following(changes)).key == {"id": 2}


@asynccontextmanager
async def site_of(engine: AsyncEngine):
    app = FastAPI()
    app.include_router(create_sse_router(engine, [Order], limits=Limits(heartbeat=0.3)))
    async with serving(app) as site:
        yield site


async def test_streams_over_http_tell_only_of_visible_rows(writer, tenant) -> None:
    await writer.execute(ROW.format(10, 8))
    await writer.execute(ROW.format(11, 7))
    async with (
        site_of(tenant) as site,
        reading(site.port, "/changes/orders?snapshot=true") as stream,
    ):
        await stream.until("snapshot-end")
        await write_both(writer)
        await stream.until("insert")
        await writer.execute("delete from orders")
        await writer.execute(ROW.format(3, 7))
        await stream.until(lambda event: event.key == 3)
    told = [(it.name, it.key) for it in stream.events if it.data.get("key")]
    assert told == [
        ("snapshot", 11),
        ("insert", 2),
        *sorted([("delete", 11), ("delete", 2)], key=told.index),
        ("insert", 3),
    ]
