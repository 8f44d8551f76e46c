"""Waits of engines that read from a standby."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import repeat
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.dispatcher import Dispatcher
from rowsignal.doctor import Severity, diagnose
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.listener import Listener, Timings
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change
from support.hint_listener import connected
from support.nats_server import nats_server
from support.shop import Base, Order
from support.standby import base_backup
from support.waits import (
    NEVER,
    NOTIFIED_ONLY,
    begin_wait,
    close_listener,
    until_listening,
    until_mode,
)

QUICK = Timings(canary=0.3, query_timeout=2.0, idle_timeout=0.2, delays=lambda: repeat(0.05))


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
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order).values(id=1, status="new"))
    await install_triggers(engine, [Order])
    await engine.dispose()


@pytest.fixture
async def replica(standby: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(standby.url)
    yield engine
    await close_listener(engine)
    await engine.dispose()


@pytest.fixture
async def writer(primary: EmbeddedPostgres) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(primary.dsn)
    yield connection
    await connection.close()


async def test_a_standby_is_polled_and_the_listener_says_why(
    replica: AsyncEngine, writer: asyncpg.Connection
) -> None:
    wait = begin_wait(replica, Order, 1, interval=0.05)
    await until_mode(replica, "polling")
    await until_listening(replica, "polling")
    reason = Dispatcher.of(replica).listener.state.reason
    assert "cannot execute LISTEN during recovery" in (reason or "")
    await writer.execute("update orders set status = 'seen on the standby'")
    assert (await wait).status == "seen on the standby"


async def test_with_hints_over_nats_a_standby_is_polled(
    replica: AsyncEngine, writer: asyncpg.Connection, tmp_path: Path
) -> None:
    async with (
        nats_server(tmp_path / "nats") as nats,
        Listener(replica, listen_url=nats.url, timings=QUICK) as listener,
    ):
        assert listener.state.mode == "polling"
        assert "read from a standby" in (listener.state.reason or "")
        wait = begin_wait(replica, Order, 1, interval=0.05)
        await until_mode(replica, "polling")
        await writer.execute("update orders set status = 'polled on the standby'")
        assert (await wait).status == "polled on the standby"


async def test_the_doctor_asks_for_the_address_of_the_primary(
    replica: AsyncEngine, primary: EmbeddedPostgres
) -> None:
    alone = {finding.subject: finding for finding in await diagnose(replica)}
    assert alone["listening"].severity is Severity.ERROR
    findings = await diagnose(replica, listen_url=primary.url)
    assert not [finding for finding in findings if finding.severity is Severity.ERROR]


async def pause_replay(standby: asyncpg.Connection) -> None:
    await standby.execute("select pg_wal_replay_pause()")
    async with asyncio.timeout(30):
        while await standby.fetchval("select pg_get_wal_replay_pause_state()") != "paused":
            await asyncio.sleep(0.01)


async def test_with_the_primary_to_listen_on_waits_are_woken_before_the_standby_replays(
    replica: AsyncEngine, primary: EmbeddedPostgres, writer: asyncpg.Connection
) -> None:
    async with (
        connected(replica) as there,
        AsyncSession(replica, expire_on_commit=False) as session,
        Listener(replica, listen_url=primary.url, timings=QUICK),
    ):
        Dispatcher.of(replica, NOTIFIED_ONLY)
        order = await session.get_one(Order, 1)
        await session.commit()
        await pause_replay(there)
        try:
            wait = begin_wait(replica, Order, 1)
            held = asyncio.create_task(
                wait_for_row_change(session, Order, 1, columns=["total"], interval=NEVER)
            )
            await until_mode(replica, "armed")
            await writer.execute("update orders set status = 'told', total = 7")
            assert (await wait).status == "told"
            assert await held is order
            assert order.total == 7
            assert await there.fetchval("select total from orders") == 0
        finally:
            await there.execute("select pg_wal_replay_resume()")
