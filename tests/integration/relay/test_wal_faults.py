"""Relays that read the WAL, and what they read it from, go away: nothing is lost or doubled."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import NoReturn

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.hooks import Hooks
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.relay import JetStreamPublisher
from rowsignal.relay.presence import Presence, StandbyRequiredError
from rowsignal.relay.publisher import FencedError
from rowsignal.relay.relay import Term
from rowsignal.relay.wal.capture import WalCapture
from support.nats_server import NatsServer
from support.proxy import proxied
from support.relays import QUICK, Load, Stored, StreamReader, relay_process, relaying
from support.wal import WalShop, open_wal_shop

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROUNDS = 60 if "ROWSIGNAL_STRESS" not in os.environ else 10_000  # of 100 changes each
WAL = ("--capture", "wal")


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[WalShop]:
    async with open_wal_shop(engine) as shop:
        yield shop


async def test_another_relay_takes_over_from_one_that_is_killed(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(shop, ROUNDS)
    async with relay_process(shop.engine, nats.url, *WAL) as first:
        await first.until("relaying")
        async with relay_process(shop.engine, nats.url, *WAL) as second:
            await load.prepare()
            await load.run(first.kill)
            await second.until("relaying")
            load.check(await stream.changes(load.changes))


async def test_a_relay_that_was_stopped_comes_back_to_a_stream_that_went_on(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(shop, ROUNDS)
    async with relay_process(shop.engine, nats.url, *WAL) as first:
        await first.until("relaying")
        async with relay_process(shop.engine, nats.url, *WAL) as second:

            async def stop_one() -> None:
                first.signal(signal.SIGSTOP)
                await second.until("relaying")
                first.signal(signal.SIGCONT)

            await load.prepare()
            await load.run(stop_one)
            load.check(await stream.changes(load.changes))


async def test_nats_goes_away_and_comes_back(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(shop, ROUNDS)
    async with relaying(shop.engine, nats.url, capture="wal"):
        await stream.next()
        await load.prepare()

        async def restart() -> None:
            await nats.kill()
            await nats.start()

        await load.run(restart)
        load.check(await stream.changes(load.changes))


async def test_messages_that_were_held_up_on_the_way_do_no_harm(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(shop, ROUNDS)
    async with proxied(("127.0.0.1", nats.port)) as proxy, AsyncExitStack() as stack:
        cut_off = relaying(shop.engine, f"nats://127.0.0.1:{proxy.port}", capture="wal")
        await stack.enter_async_context(cut_off)
        await stream.next()
        await stack.enter_async_context(relaying(shop.engine, nats.url, capture="wal"))
        await load.prepare()

        async def hold_up() -> None:
            proxy.stall()
            found.extend(await stream.changes(load.written))
            proxy.resume()

        found: list[Stored] = []
        await load.run(hold_up)
        load.check(found + await stream.changes(load.changes - len(found)))


async def _never_standing_by(shop: WalShop, url: str, label: str) -> NoReturn:
    """Relay without hearing other relays: the slot lets one in, and the stream decides."""
    database = shop.engine.url.database or ""
    async with connected(url, label) as client:
        publisher = JetStreamPublisher(client, database)
        capture = WalCapture(shop.engine, {("public", "item"): None})
        term = Term(capture, publisher, database, QUICK, Hooks())
        while True:
            presence = Presence(client, f"{database} {label}", QUICK)
            try:
                await asyncio.wait_for(term.run(presence), 0.7)
            except (FencedError, StandbyRequiredError, *OUTAGES):
                continue


async def test_relays_that_do_not_hear_each_other_publish_each_change_once(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(shop, ROUNDS)
    relays = [asyncio.create_task(_never_standing_by(shop, nats.url, label)) for label in "abc"]
    try:
        await stream.next()
        await load.prepare()
        await load.run()
        reading = asyncio.ensure_future(stream.changes(load.changes))
        done, _ = await asyncio.wait([reading, *relays], return_when=asyncio.FIRST_COMPLETED)
        load.check(await done.pop())
    finally:
        for relay in relays:
            relay.cancel()
        await asyncio.gather(*relays, return_exceptions=True)


@pytest.mark.parametrize("mode", ["immediate", "fast"])
async def test_postgresql_restarts(
    shop: WalShop, nats: NatsServer, stream: StreamReader, server: EmbeddedPostgres, mode: str
) -> None:
    async with relaying(shop.engine, nats.url, capture="wal"):
        await stream.next()
        await shop.insert(*range(100))
        found = await stream.changes(100)
        await shop.insert(*range(100, 3000))
        await asyncio.to_thread(server.restart, mode=mode)
        sql = await shop.connect()
        await sql.execute("insert into item values (3000, 0)")
        found += await stream.changes(2901)
    assert [it.id for it in found] == list(range(3001))
