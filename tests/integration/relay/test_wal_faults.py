"""Relays that read the WAL, and what they read it from, go away: nothing is lost or doubled."""

import asyncio
import os
from collections.abc import AsyncIterator
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
from support.relays import QUICK, Load, StreamReader, relaying
from support.wal import WalShop, open_wal_shop

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROUNDS = 60 if "ROWSIGNAL_STRESS" not in os.environ else 10_000  # of 100 changes each


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[WalShop]:
    async with open_wal_shop(engine) as shop:
        yield shop


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
