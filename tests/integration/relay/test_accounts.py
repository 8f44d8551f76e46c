"""NATS with accounts and permissions, and with a region of its own behind a leaf node."""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import nats
import pytest
from nats.js import api
from nats.js.errors import NotFoundError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.embedded.ports import free_port
from rowsignal.relay import stream_health, stream_name
from support.event_streams import EventReader, execute, make_tables, reading
from support.gateways import gateway_process
from support.hoppers import PATH
from support.nats_server import NatsServer, client_of
from support.relays import StreamReader, relaying

PAGE = Path(__file__).parents[3] / "docs" / "explanation" / "scale.md"
SECRETS = {"$RELAY_PASSWORD": "relay-secret", "$GATEWAY_PASSWORD": "gateway-secret"}
PATIENCE = 30.0


def configuration(name: str) -> str:
    """Return a block of the page, by the name in its first line."""
    found = re.search(rf"```nginx\n# {name}\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@asynccontextmanager
async def server_with(folder: Path, port: int, more: str) -> AsyncIterator[NatsServer]:
    server = NatsServer(folder, port, folder.name, more)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


async def level(reader: EventReader) -> None:
    await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))


async def test_the_permissions_of_the_page_are_enough_and_no_more(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    text = configuration("accounts.conf")
    for name, secret in SECRETS.items():
        text = text.replace(name, secret)
    database, port = engine.url.database or "", free_port()
    relay, gateway, other = (
        f"nats://{user}@127.0.0.1:{port}"
        for user in ("relay:relay-secret", "gateway:gateway-secret", "billing:other-secret")
    )
    text = text.replace("$BILLING_PASSWORD", "other-secret")
    await make_tables(engine, row_values=True)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(server_with(tmp_path / "n1", port, text))
        await stack.enter_async_context(relaying(engine, relay))
        reading_client = await stack.enter_async_context(client_of(relay))
        await StreamReader(reading_client, database).open()
        carrier = gateway_process("--nats", gateway, "--database", database)
        site = await stack.enter_async_context(carrier)
        reader = await stack.enter_async_context(reading(site.port, PATH))
        await level(reader)
        await _invent(gateway, database)
        await execute(engine, "insert into orders values (1, 'open', 1, 1, 'x')")
        first = await reader.until(lambda it: it.name != "heartbeat")
        health = await stream_health(gateway, database)
        assert (first.name, first.key) == ("insert", 1)
        assert health is not None
        assert health.relay_lag is not None
        stranger = await stack.enter_async_context(client_of(other))
        with pytest.raises(NotFoundError):
            await stranger.jetstream().stream_info(stream_name(database))


async def _invent(url: str, database: str) -> None:
    """Try to publish as a gateway what only a relay may; wait until NATS has refused it."""
    refused = asyncio.Event()

    async def note(error: Exception) -> None:
        if "permissions violation" in str(error).lower():
            refused.set()

    client = await nats.connect(url, error_cb=note)
    await client.publish(f"rowsignal.{database}.public.orders", b'{"operation": "delete"}')
    async with asyncio.timeout(PATIENCE):
        await refused.wait()
    await client.close()


async def test_a_region_reads_a_mirror_with_the_sequences_of_its_origin(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    await make_tables(engine, row_values=True)
    database = engine.url.database or ""
    hub_port, leaf_port, link = (free_port() for _ in range(3))
    hub_more = f'leafnodes {{ listen: "127.0.0.1:{link}" }}\n'
    leaf_more = f'leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{link}" }} ] }}\n'
    async with AsyncExitStack() as stack:
        hub = NatsServer(tmp_path / "hub", hub_port, "hub", hub_more, domain="hub")
        leaf = NatsServer(tmp_path / "eu", leaf_port, "eu", leaf_more, domain="eu")
        for server in (hub, leaf):
            stack.push_async_callback(server.kill)
            await server.start()
        await stack.enter_async_context(relaying(engine, hub.url))
        at_hub = await stack.enter_async_context(client_of(hub.url))
        origin = StreamReader(at_hub, database)
        await origin.next()
        at_leaf = await stack.enter_async_context(client_of(leaf.url))
        for name in (origin.stream, "KV_rowsignal-tables"):
            external = api.ExternalStream(api="$JS.hub.API", deliver="")
            mirror = api.StreamSource(name=name, external=external)
            await at_leaf.jetstream().add_stream(api.StreamConfig(name=name, mirror=mirror))
        for url in (hub.url, leaf.url):
            await _until_described(url, database)
        near = gateway_process("--nats", leaf.url, "--database", database)
        far = gateway_process("--nats", hub.url, "--database", database)
        here, there = await stack.enter_async_context(near), await stack.enter_async_context(far)
        async with reading(here.port, PATH) as reader:
            await level(reader)
            await execute(engine, "insert into orders values (1, 'open', 1, 1, 'x')")
            first = await reader.until("insert")
            health = await stream_health(leaf.url, database)
        await execute(engine, "insert into orders values (2, 'open', 1, 1, 'x')")
        headers = {"Last-Event-ID": first.id}
        async with reading(here.port, PATH, headers=headers) as reader:
            second = await reader.until("insert")
        async with reading(there.port, PATH, headers=headers) as reader:
            reset = await reader.until("reset")
    assert health is not None
    assert health.relay_lag is not None  # the relay is heard across the leaf node
    assert (first.key, second.key) == (1, 2)
    assert first.id.endswith(f".{health.last_sequence}")
    assert "another one" in reset.data["reason"]


async def _until_described(url: str, database: str) -> None:
    """Wait until the tables are known at a server."""
    async with asyncio.timeout(PATIENCE):
        while True:
            health = await stream_health(url, database)
            if health is not None and health.tables:
                return
            await asyncio.sleep(0.1)
