"""Gateways as processes that are killed, stopped and cut off: no reader misses a change."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.relay import StreamSettings
from support.event_streams import execute, make_tables, reading
from support.gateways import GatewayProcess, gateway_process
from support.hoppers import PATH, Hopper, hop, in_turns
from support.nats_server import NatsServer, client_of, nats_cluster
from support.proxy import Proxy, proxied
from support.relays import StreamReader, relay_process, relaying

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

SILENCE = 1.0  # seconds after which a reader goes elsewhere
LARGE = 20_000
CUT_ROUNDS, LONGEST_VISIT = 50, 150_000  # bytes


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> AsyncIterator[tuple[str, ...]]:
    """Provide the arguments of gateways of a database whose orders are relayed."""
    await make_tables(engine, row_values=True)
    async with relaying(engine, nats.url):
        await stream.next()
        yield "--nats", nats.url, "--database", engine.url.database or ""


async def two_gateways(
    stack: AsyncExitStack, arguments: tuple[str, ...]
) -> tuple[GatewayProcess, GatewayProcess]:
    """Start two gateways at once."""
    started = [stack.enter_async_context(gateway_process(*arguments)) for _ in range(2)]
    one, other = await asyncio.gather(*started)
    return one, other


async def test_a_gateway_is_killed_while_readers_are_on_it(
    relayed: tuple[str, ...], engine: AsyncEngine
) -> None:
    async with AsyncExitStack() as stack:
        one, other = await two_gateways(stack, relayed)
        ports = [one.port, other.port]
        hoppers = [Hopper(in_turns(ports), silence=5 * SILENCE) for _ in range(3)]
        stays = Hopper(lambda: one.port, silence=5 * SILENCE, stays=True)

        async def replace() -> None:
            await one.kill()
            await stack.enter_async_context(gateway_process(*relayed, port=one.port))

        await hop(engine, [*hoppers, stays], replace)
        assert stays.hops > 1


async def test_a_gateway_that_is_stopped_goes_on_without_a_gap(
    relayed: tuple[str, ...], engine: AsyncEngine
) -> None:
    async with AsyncExitStack() as stack:
        one, other = await two_gateways(stack, relayed)
        stays = Hopper(lambda: one.port, stays=True)
        hopper = Hopper(in_turns([one.port, other.port]), silence=SILENCE)

        async def stop() -> None:
            one.signal(signal.SIGSTOP)
            async with reading(other.port, PATH) as reader:  # the other one serves meanwhile
                await reader.until("update")
            await hopper.received(500)
            one.signal(signal.SIGCONT)

        await hop(engine, [stays, hopper], stop)
        assert stays.hops == 1


async def test_browsers_are_cut_at_random_without_stickiness(
    relayed: tuple[str, ...], engine: AsyncEngine
) -> None:
    chance = random.Random(5)
    async with AsyncExitStack() as stack:
        gateways = await two_gateways(stack, relayed)
        proxy = await stack.enter_async_context(proxied(("127.0.0.1", gateways[0].port)))

        def through() -> int:
            _redirect(proxy, chance.choice(gateways).port, chance.randint(400, LONGEST_VISIT))
            return proxy.port

        hoppers = [Hopper(through, stays=True) for _ in range(3)]
        await hop(engine, hoppers, rounds=CUT_ROUNDS)
        assert all(it.hops > 5 for it in hoppers)


def _redirect(proxy: Proxy, port: int, cut_after: int) -> None:
    """Lead the next connection elsewhere, and cut it after some bytes, amid an event."""
    proxy.target, proxy.cut_after = ("127.0.0.1", port), cut_after


async def test_a_gateway_far_behind_a_stream_that_discards_tells_of_the_gap(
    relayed: tuple[str, ...], engine: AsyncEngine, client: Client, stream: StreamReader
) -> None:
    padded = f"select n, 'open', 1, 1, repeat('x', 1000) from generate_series(1, {LARGE}) n"
    async with gateway_process(*relayed) as gateway, reading(gateway.port, PATH) as reader:
        await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
        gateway.signal(signal.SIGSTOP)
        await execute(engine, f"insert into orders {padded}")
        await stream.changes(LARGE)
        js = client.jetstream()
        config = (await js.stream_info(stream.stream)).config
        await js.update_stream(config.evolve(max_msgs=5))
        gateway.signal(signal.SIGCONT)
        end = await reader.until("reset")
    keys = [it.key for it in reader.events if it.name == "insert"]
    assert keys == list(range(1, len(keys) + 1))
    assert len(keys) < LARGE
    assert "discarded" in end.data["reason"] or "catching up" in end.data["reason"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_node_of_three_goes_away_below_gateways(
    engine: AsyncEngine, tmp_path: Path, number: signal.Signals
) -> None:
    await make_tables(engine, row_values=True)
    async with nats_cluster(tmp_path) as cluster, AsyncExitStack() as stack:
        client = await stack.enter_async_context(client_of(cluster.url))
        settings = StreamSettings(replicas=3)
        await stack.enter_async_context(relaying(engine, cluster.url, stream=settings))
        stream = StreamReader(client, engine.url.database or "")
        await stream.next()
        info = await client.jetstream().stream_info(stream.stream)
        assert info.cluster is not None
        (leader,) = [it for it in cluster.servers if it.name == info.cluster.leader]
        arguments = ("--nats", cluster.url, "--database", engine.url.database or "")
        gateways = await two_gateways(stack, arguments)
        hoppers = [Hopper(in_turns([it.port for it in gateways]), silence=5.0) for _ in range(2)]

        async def leave() -> None:
            leader.signal(number)

        await hop(engine, hoppers, leave)


@pytest.mark.stress
@pytest.mark.timeout(3600)
async def test_readers_hop_while_each_part_is_killed(engine: AsyncEngine, nats: NatsServer) -> None:
    await make_tables(engine, row_values=True)
    async with AsyncExitStack() as stack:
        relay = await stack.enter_async_context(relay_process(engine, nats.url))
        await relay.until("relaying")
        arguments = ("--nats", nats.url, "--database", engine.url.database or "")
        one, other = await two_gateways(stack, arguments)
        ports = [one.port, other.port]
        hoppers = [Hopper(in_turns(ports), silence=10.0) for _ in range(3)]

        async def break_all() -> None:
            await stack.enter_async_context(relay_process(engine, nats.url))
            await relay.kill()
            await hoppers[0].received(500)
            await nats.kill()
            await nats.start()
            await hoppers[0].received(500)
            await other.kill()
            await stack.enter_async_context(gateway_process(*arguments, port=other.port))

        await hop(engine, hoppers, break_all)
        assert all(it.hops > 5 for it in hoppers)
