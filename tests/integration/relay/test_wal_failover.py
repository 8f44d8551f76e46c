"""A standby takes the primary's place: with a copy of the slot a relay goes on, else it resets."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import asyncpg
import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from support.change_log import connect
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.standby import base_backup
from support.wal import WalShop, open_wal_shop

COPIES_OF_SLOTS = 170000
PATIENCE = 60.0
LEVEL = "select pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
CONFIRMED = (
    "select confirmed_flush_lsn >= $1::text::pg_lsn from pg_replication_slots"
    " where slot_type = 'logical'"
)
HAS_SLOT = "select count(*) from pg_replication_slots where slot_name = 'standby'"
END_SENDER = (
    "select pg_terminate_backend(active_pid, 1000) from pg_replication_slots"
    " where slot_name = 'standby' and active"
)
COPIED = "select count(*) from pg_replication_slots where synced and not temporary"


@asynccontextmanager
async def _standby(server: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    copy = await asyncio.to_thread(base_backup, server)
    host = server.dsn.partition("host=")[2]
    settings = {
        "hot_standby_feedback": "on",
        "primary_slot_name": "standby",
        "primary_conninfo": f"host={host} user=postgres dbname=postgres",
    }
    async with EmbeddedPostgres(data_dir=copy, settings=settings) as standby:
        yield standby


async def _level(primary: asyncpg.Connection, standby: asyncpg.Connection) -> None:
    """Wait until the standby has all that the primary has."""
    end = await primary.fetchval("select pg_current_wal_lsn()::text")
    async with asyncio.timeout(PATIENCE):
        while not await standby.fetchval(LEVEL, end):
            await asyncio.sleep(0.05)


async def _copy_slot(shop: WalShop, stream: StreamReader, standby: asyncpg.Connection) -> None:
    """Let the relay read on until the standby has a copy of the slot."""
    await shop.insert(100)
    await stream.changes(1)
    async with asyncio.timeout(PATIENCE):
        while not await standby.fetchval(COPIED):
            await _confirm(shop)
            await _level(shop.sql, standby)
            await standby.execute("select pg_sync_replication_slots()")


async def _cut_off(primary: asyncpg.Connection) -> None:
    """Send the standby nothing more: it has no slot to come back to."""
    async with asyncio.timeout(PATIENCE):
        while await primary.fetchval(HAS_SLOT):
            await primary.execute(END_SENDER)
            with suppress(asyncpg.ObjectInUseError):
                await primary.execute("select pg_drop_replication_slot('standby')")


async def _confirm(shop: WalShop) -> None:
    """Wait until the slot is confirmed behind a list of running transactions."""
    end = await shop.sql.fetchval("select pg_log_standby_snapshot()::text")
    await shop.sql.execute("select pg_logical_emit_message(false, 'rowsignal', '')")
    while not await shop.sql.fetchval(CONFIRMED, end):
        await asyncio.sleep(0.05)


@pytest.fixture
async def primary(nats: NatsServer) -> AsyncIterator[tuple[EmbeddedPostgres, WalShop]]:
    async with EmbeddedPostgres(settings={"wal_sender_timeout": "5s"}) as server:
        engine = create_async_engine(server.url)
        async with AsyncExitStack() as stack:
            shop = await stack.enter_async_context(open_wal_shop(engine))
            await shop.sql.execute("select pg_create_physical_replication_slot('standby', true)")
            yield server, shop
        await engine.dispose()


async def test_without_a_copy_of_the_slot_there_is_a_reset(
    primary: tuple[EmbeddedPostgres, WalShop], nats: NatsServer, client: Client
) -> None:
    server, shop = primary
    stream = StreamReader(client, "postgres")
    async with _standby(server) as standby:
        async with relaying(shop.engine, nats.url, capture="wal"):
            await stream.next()
            await shop.insert(1)
            await stream.changes(1)
        engine = create_async_engine(standby.url)
        other = await connect(engine)
        await _level(shop.sql, other)
        assert await other.fetchval("select pg_promote()")
        async with relaying(engine, nats.url, capture="wal"):
            reset = await stream.until("reset")
            await other.execute("insert into item values (2, 0)")
            assert [it.id for it in await stream.changes(1)] == [2]
        assert "no replication slot" in reset.body["reason"]
        await other.close()
        await engine.dispose()


@pytest.mark.parametrize("is_ahead", [False, True])
async def test_with_a_copy_of_the_slot_a_relay_goes_on_unless_the_stream_is_ahead(
    primary: tuple[EmbeddedPostgres, WalShop], nats: NatsServer, client: Client, is_ahead: bool
) -> None:
    server, shop = primary
    if await shop.sql.fetchval("show server_version_num") < str(COPIES_OF_SLOTS):
        pytest.skip("PostgreSQL 17 and newer copy logical slots to standbys")
    stream = StreamReader(client, "postgres")
    async with _standby(server) as standby:
        engine = create_async_engine(standby.url)
        other = await connect(engine)
        async with relaying(shop.engine, nats.url, capture="wal"):
            await stream.next()
            await _copy_slot(shop, stream, other)
            if is_ahead:
                await _cut_off(shop.sql)
                await shop.insert(500)
                await stream.changes(1)
        if not is_ahead:
            await shop.insert(600)
            await _level(shop.sql, other)
        assert await other.fetchval("select pg_promote()")
        async with relaying(engine, nats.url, capture="wal"):
            await other.execute("insert into item values (700, 0)")
            if is_ahead:
                reset = await stream.until("reset")
                assert "replaced by a standby" in reset.body["reason"]
            else:
                assert [it.id for it in await stream.changes(2)] == [600, 700]
        await other.close()
        await engine.dispose()
