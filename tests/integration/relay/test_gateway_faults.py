"""Readers that hop between gateways while parts go away: nothing lost, doubled or disordered."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from support.event_streams import execute, make_tables, reading
from support.gateways import gateway
from support.hoppers import FILL, ROWS, Hopper, count_up, hop, in_turns
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import published

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PATH = "/changes/orders"


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader, request: pytest.FixtureRequest
) -> AsyncIterator[str]:
    """Provide the name of a database whose orders are relayed, from the log unless asked."""
    await make_tables(engine, row_values=True)
    capture = getattr(request, "param", "log")
    async with AsyncExitStack() as stack:
        if capture == "wal":
            await stack.enter_async_context(published(engine, "orders"))
        await stack.enter_async_context(relaying(engine, nats.url, capture=capture))
        await stream.next()
        yield engine.url.database or ""


@pytest.mark.parametrize("relayed", ["log", "wal"], indirect=True)
async def test_readers_hop_between_gateways(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as one, gateway(nats.url, relayed) as other:
        arrive = in_turns([one.port, other.port])
        hoppers = [Hopper(arrive, PATH) for _ in range(3)]
        await hop(engine, hoppers)
    assert all(it.hops > 5 for it in hoppers)


@pytest.mark.parametrize("relayed", ["log", "wal"], indirect=True)
async def test_readers_begin_with_the_rows_while_they_change(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    await execute(engine, FILL)
    async with (
        gateway(nats.url, relayed, engine=engine) as one,
        gateway(nats.url, relayed, engine=engine) as other,
    ):
        writing = asyncio.create_task(count_up(engine))
        arrive = in_turns([one.port, other.port])
        hoppers = [Hopper(arrive, PATH, begins_with_rows=True) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for hopper in hoppers:
                group.create_task(hopper.run())
        await writing
    for hopper in hoppers:
        hopper.check()


async def test_all_of_nats_goes_away_and_comes_back(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(gateway(nats.url, relayed)) for _ in range(2)]

        async def restart() -> None:
            await nats.kill()
            await nats.start()

        await hop(engine, [Hopper(in_turns([it.port for it in sites]), PATH)], restart)


async def test_a_gateway_goes_on_when_nats_was_started_again(
    relayed: str, engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> None:
    async with (
        gateway(nats.url, relayed) as site,
        reading(site.port, PATH) as reader,
    ):
        await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
        await nats.kill()
        await nats.start()
        await execute(engine, FILL)
        await stream.changes(ROWS)
        found = [await reader.until(lambda it: it.name in {"insert", "reset"}) for _ in range(ROWS)]
    assert [it.key for it in found] == list(range(1, ROWS + 1))
