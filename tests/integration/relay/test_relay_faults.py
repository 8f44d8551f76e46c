"""Relays, NATS and PostgreSQL that go away under load: no change is lost, doubled or disordered."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NoReturn

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.hooks import Hooks
from rowsignal.nats.connection import connected
from rowsignal.relay import JetStreamPublisher, StreamSettings
from rowsignal.relay.captures import LogCapture
from rowsignal.relay.presence import Presence, StandbyRequiredError
from rowsignal.relay.publisher import FencedError
from rowsignal.relay.relay import CaptureName, Term
from support.change_log import Shop, connect, open_shop
from support.nats_server import NatsServer, client_of, nats_cluster
from support.proxy import proxied
from support.relays import QUICK, Load, Stored, StreamReader, relay_process, relaying
from support.wal import WalShop, open_wal_shop

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

AnyShop = Shop | WalShop
ROUNDS = 60 if "ROWSIGNAL_STRESS" not in os.environ else 10_000  # of 100 changes each


@pytest.fixture(params=["log", "wal"])
def capture(request: pytest.FixtureRequest) -> CaptureName:
    name: CaptureName = request.param
    return name


@pytest.fixture
async def source(engine: AsyncEngine, capture: CaptureName) -> AsyncIterator[AnyShop]:
    """Provide a table `item` whose changes are captured."""
    opened = open_wal_shop(engine) if capture == "wal" else open_shop(engine)
    async with opened as shop:
        yield shop


@asynccontextmanager
async def aclosing_engine(engine: AsyncEngine) -> AsyncIterator[None]:
    try:
        yield
    finally:
        await engine.dispose()


async def _never_standing_by(engine: AsyncEngine, url: str, label: str) -> NoReturn:
    """Relay without hearing other relays: only the stream decides between them."""
    database = engine.url.database or ""
    own = create_async_engine(engine.url)  # and so a reader of the log of its own
    async with aclosing_engine(own), connected(url, label) as client:
        publisher = JetStreamPublisher(client, database)
        capture = LogCapture(own, {("public", "item"): None})
        term = Term(capture, publisher, database, QUICK, Hooks())
        deaf = Presence(client, f"{database} {label}", QUICK)
        while True:
            try:
                await term.run(deaf)
            except FencedError:
                fenced[label] = fenced.get(label, 0) + 1
            except (TimeoutError, StandbyRequiredError):
                continue  # a busy machine: nothing is known, and the stream's end says it


fenced: dict[str, int] = {}


async def test_relays_that_do_not_hear_each_other_publish_each_change_once(
    shop: Shop, nats: NatsServer, stream: StreamReader
) -> None:
    fenced.clear()
    load = Load(shop, ROUNDS)
    relays = [
        asyncio.create_task(_never_standing_by(shop.engine, nats.url, label)) for label in "abc"
    ]
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
    assert sum(fenced.values()) > 0, "the relays never met"


async def test_another_relay_takes_over_from_one_that_is_killed(
    source: AnyShop, capture: CaptureName, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(source, ROUNDS)
    async with relay_process(source.engine, nats.url, "--capture", capture) as first:
        await first.until("relaying")
        async with relay_process(source.engine, nats.url, "--capture", capture) as second:
            await load.prepare()
            await load.run(first.kill)
            await second.until("relaying")
            load.check(await stream.changes(load.changes))


async def test_a_relay_that_was_stopped_comes_back_to_a_stream_that_went_on(
    source: AnyShop, capture: CaptureName, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(source, ROUNDS)
    async with relay_process(source.engine, nats.url, "--capture", capture) as first:
        await first.until("relaying")
        async with relay_process(source.engine, nats.url, "--capture", capture) as second:

            async def stop_one() -> None:
                first.signal(signal.SIGSTOP)
                await second.until("relaying")
                first.signal(signal.SIGCONT)

            await load.prepare()
            await load.run(stop_one)
            load.check(await stream.changes(load.changes))


async def test_nats_goes_away_and_comes_back(
    source: AnyShop, capture: CaptureName, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(source, ROUNDS)
    async with relaying(source.engine, nats.url, capture=capture):
        await stream.next()
        await load.prepare()

        async def restart() -> None:
            await nats.kill()
            await nats.start()

        await load.run(restart)
        load.check(await stream.changes(load.changes))


async def test_messages_that_were_held_up_on_the_way_do_no_harm(
    source: AnyShop, capture: CaptureName, nats: NatsServer, stream: StreamReader
) -> None:
    load = Load(source, ROUNDS)
    async with proxied(("127.0.0.1", nats.port)) as proxy, AsyncExitStack() as stack:
        cut_off = relaying(source.engine, f"nats://127.0.0.1:{proxy.port}", capture=capture)
        await stack.enter_async_context(cut_off)
        await stream.next()
        await stack.enter_async_context(relaying(source.engine, nats.url, capture=capture))
        await load.prepare()

        async def hold_up() -> None:
            proxy.stall()
            found.extend(await stream.changes(load.written))
            proxy.resume()

        found: list[Stored] = []
        await load.run(hold_up)
        load.check(found + await stream.changes(load.changes - len(found)))


async def test_a_node_of_three_dies(shop: Shop, tmp_path: Path, engine: AsyncEngine) -> None:
    load = Load(shop, ROUNDS)
    async with nats_cluster(tmp_path) as cluster, client_of(cluster.url) as client:
        stream = StreamReader(client, engine.url.database or "")
        async with relaying(shop.engine, cluster.url, stream=StreamSettings(replicas=3)):
            await stream.next()
            info = await client.jetstream().stream_info(stream.stream)
            assert info.cluster is not None
            (leader,) = [it for it in cluster.servers if it.name == info.cluster.leader]
            await load.prepare()
            await load.run(leader.kill)
            load.check(await stream.changes(load.changes))


async def test_postgresql_crashes_and_comes_back(
    shop: Shop, nats: NatsServer, stream: StreamReader, server: EmbeddedPostgres
) -> None:
    async with relaying(shop.engine, nats.url):
        await stream.next()
        await shop.insert(1)
        await stream.changes(1)
        await asyncio.to_thread(server.restart, mode="immediate")
        sql = await connect(shop.engine)
        await sql.execute("insert into item values (2, 0)")
        while (message := await stream.next()).operation == "checkpoint":
            pass
        await sql.execute("insert into item values (3, 0)")
        await sql.close()
        while (last := await stream.next()).id != 3:
            assert last.id == 2, last
    # Whether ids of transactions are used again, so that there is another log, is not for the test.
    assert message.operation == "reset" or message.id == 2
    assert [it.id for it in stream.messages].count(3) == 1
