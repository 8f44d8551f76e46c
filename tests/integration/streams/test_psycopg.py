"""An engine of psycopg serves for all that one of asyncpg does."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.doctor import diagnose
from rowsignal.handlers import ChangeHandlers
from rowsignal.listener import Listener
from rowsignal.live_queries import live_query
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers, trigger_status, uninstall_triggers
from rowsignal.waiting import wait_for_any_row_change, wait_for_row, wait_for_row_change
from support.event_streams import execute, reading
from support.typed_rows import ATTRIBUTES, VALUES, Base, Item, Status
from support.waits import close_listener
from support.web_server import serving


@pytest.fixture(params=["hints", "log"])
async def psycopg(engine: AsyncEngine, request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    pytest.importorskip("psycopg")
    ours = create_async_engine(engine.url.set(drivername="postgresql+psycopg"))
    async with ours.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(ours, Base, log=request.param == "log", row_values=False)
    async with Listener(ours):
        yield ours
    await close_listener(ours)
    await ours.dispose()


async def within(awaitable: Any) -> Any:
    async with asyncio.timeout(30):
        return await awaitable


async def write(engine: AsyncEngine, *items: Any) -> None:
    async with AsyncSession(engine) as session, session.begin():
        session.add_all(items)


async def test_streams_give_rows_keys_and_snapshots(psycopg: AsyncEngine) -> None:
    await write(psycopg, Item(id=1, **VALUES))
    async with watch(psycopg, Item, snapshot=True, pk=[1, 2]) as changes:
        shown = await within(anext(changes))
        await write(psycopg, Item(id=3, status=Status.NEW), Item(id=2, **VALUES))
        inserted = await within(anext(changes))
    assert {name: shown.row[name] for name in VALUES} == VALUES
    assert inserted.row == shown.row | {"id": 2}
    async with AsyncSession(psycopg) as session:
        loaded = await session.get_one(Item, 2)
        assert {name: getattr(loaded, name) for name in ATTRIBUTES} == inserted.row


async def test_waits_and_live_queries_resolve(psycopg: AsyncEngine) -> None:
    async with AsyncSession(psycopg, expire_on_commit=False) as session:
        coming = asyncio.ensure_future(wait_for_row(psycopg, Item, 1, timeout=30))
        await write(psycopg, Item(id=1, **VALUES))
        assert (await coming).status is Status.PAID
        item = await session.get_one(Item, 1)
        await session.commit()
        statement = sa.select(Item.small)
        async with live_query(psycopg, statement) as results:
            assert await within(anext(results)) == [VALUES["small"]]
            await execute(psycopg, "update items set small = 8")
            assert await within(anext(results)) == [8]
        assert await wait_for_row_change(session, Item, 1, timeout=30) is item
        await session.get_one(Item, 1, populate_existing=True)  # in a transaction from here on
        await execute(psycopg, "update items set small = 9")
        assert (await wait_for_row_change(session, Item, 1, timeout=30)).small == 9
        await session.commit()
        waiting = asyncio.ensure_future(wait_for_any_row_change(psycopg, Item, [1], timeout=30))
        while not waiting.done():  # what it compares with is read after the call
            await execute(psycopg, "update items set small = small + 1")
        assert (await waiting) is not None


async def test_http_serves_streams_and_long_polls(psycopg: AsyncEngine) -> None:
    pytest.importorskip("fastapi")
    from fastapi import FastAPI

    from rowsignal.sse import create_sse_router

    app = FastAPI()
    app.include_router(create_sse_router(psycopg, [Item]))
    await write(psycopg, Item(id=1, **VALUES))
    async with (
        serving(app) as site,
        reading(site.port, "/changes/items?snapshot=true&where=small.lt.9&pk=1") as stream,
    ):
        shown = await stream.until("snapshot")
        await stream.until("snapshot-end")
        await execute(psycopg, "update items set small = 8")
        updated = await stream.until("update")
        polled = await site.client.get("/wait/items/1", headers={"If-None-Match": '"x"'})
    assert polled.status_code == 200, polled.text
    assert updated.data["row"] == shown.data["row"] | {"small": 8} == polled.json()["row"]


@pytest.mark.parametrize("psycopg", ["log"], indirect=True)
async def test_handlers_write_in_sessions_of_the_engine(psycopg: AsyncEngine) -> None:
    handled: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    handlers = ChangeHandlers(psycopg)

    @handlers.on(Item, name="seen", start="beginning")
    async def see(session: AsyncSession, change: Any) -> None:
        handled.set_result((await session.get_one(Item, change.key["item_id"])).status)

    async with handlers:
        await write(psycopg, Item(id=1, **VALUES))
        assert await within(handled) is Status.PAID


async def test_triggers_are_installed_seen_and_removed(psycopg: AsyncEngine) -> None:
    findings = await diagnose(psycopg)
    assert [it for it in findings if "could not be examined" in it.message] == []
    assert {it.state for it in await trigger_status(psycopg)} == {"installed"}
    await uninstall_triggers(psycopg, Base)
    assert {it.state for it in await trigger_status(psycopg, Base)} == {"missing"}
