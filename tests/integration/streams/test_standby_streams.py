"""Streams of engines that read from a standby: rows come from where their positions do."""

import asyncio
from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.listener import Listener
from rowsignal.sse import Limits, create_sse_router
from rowsignal.streams import watch
from support.change_log import connect
from support.event_streams import Order, make_tables, reading
from support.standby import base_backup
from support.web_server import serving


@pytest.fixture(scope="module")
def primary() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres() as server:
        asyncio.run(furnish(server.url))
        yield server


@pytest.fixture(scope="module")
def standby(primary: EmbeddedPostgres) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(data_dir=base_backup(primary)) as server:
        yield server


async def furnish(url: str) -> None:
    engine = create_async_engine(url)
    await make_tables(engine)
    await engine.dispose()


async def test_a_standby_that_lags_shows_no_row_of_before(
    primary: EmbeddedPostgres, standby: EmbeddedPostgres
) -> None:
    replica, writer = create_async_engine(standby.url), create_async_engine(primary.url)
    behind, ahead = await connect(replica), await connect(writer)
    app = FastAPI()
    app.include_router(create_sse_router(replica, [Order], limits=Limits(heartbeat=0.3)))
    async with Listener(replica, listen_url=primary.url), serving(app) as site:
        await behind.execute("select pg_wal_replay_pause()")
        try:
            async with (
                watch(replica, Order, rows=True) as changes,
                reading(site.port, "/changes/orders?snapshot=true") as stream,
            ):
                await stream.until("snapshot-end")
                await ahead.execute("insert into orders values (1, 'new', 1, 7, '')")
                await ahead.execute("update orders set status = 'paid'")
                async with asyncio.timeout(30):
                    shown = [await anext(changes) for _ in range(2)]
                assert shown[-1].row["status"] == "paid"
                assert (await stream.until("update")).data["row"]["status"] == "paid"
        finally:
            await behind.execute("select pg_wal_replay_resume()")
    for connection in (behind, ahead):
        await connection.close()
    await replica.dispose()
    await writer.dispose()
