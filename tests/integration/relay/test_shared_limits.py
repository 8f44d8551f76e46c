"""Limits, tickets and the list of streams that hosts share over NATS, on real gateways."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.embedded.ports import free_port
from rowsignal.nats import shared_limits
from rowsignal.nats.shared_readers import JetStreamReaderCounts
from rowsignal.relay import JetStreamLimits, StreamSettings
from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from rowsignal.sse import Limits
from support.event_streams import EventReader, make_tables, reading
from support.gateways import gateway
from support.nats_server import NatsServer, client_of, kill_leader, nats_cluster
from support.relays import StreamReader, relaying
from support.tokens import SECRET, bearer
from support.web_server import Site, serving

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PATIENCE = 60.0
LEASE = 2.0
PATH = "/changes/orders"
KEY = b"a secret that is long enough to sign with"


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> AsyncIterator[str]:
    """Provide the name of a database whose orders and items are relayed."""
    await make_tables(engine, row_values=True)
    async with relaying(engine, nats.url):
        await stream.next()
        yield engine.url.database or ""


@asynccontextmanager
async def sharing(
    nats: str, database: str, count: int = 2, each: int = 2
) -> AsyncIterator[list[Site]]:
    """Serve gateways that allow so many streams of a principal, all of them together."""
    async with AsyncExitStack() as stack:
        sites = []
        for _ in range(count):
            shared = JetStreamLimits(nats, database, lease=LEASE)
            limits = Limits(heartbeat=0.3, write_interval=0.01, max_streams_per_principal=each)
            serving = gateway(nats, database, limits=limits, shared=shared, key_secret=KEY)
            sites.append(await stack.enter_async_context(serving))
        yield sites


@asynccontextmanager
async def opened(*ports: int, path: str = PATH) -> AsyncIterator[list[EventReader]]:
    """Hold streams open, one at each port."""
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(reading(port, path)) for port in ports]
        yield readers


async def status_of(port: int, path: str = PATH) -> int:
    async with reading(port, path) as reader:
        return reader.status


async def until_status(port: int, wanted: int, path: str = PATH) -> None:
    """Return when a stream that is opened and closed again gets a status."""
    async with asyncio.timeout(PATIENCE):
        while await status_of(port, path) != wanted:
            await asyncio.sleep(0.05)


async def issue(site: Site) -> str:
    """Return a ticket that one gateway issues."""
    answer = await site.client.post("/tickets")
    assert answer.status_code == 201, answer.text
    return str(answer.json()["ticket"])


async def used_ticket(issuer: Site, reader: Site) -> str:
    """Return the path with the first ticket that one gateway issues and the other takes."""
    async with asyncio.timeout(PATIENCE):
        while True:  # until another node leads, tickets are refused
            answer = await issuer.client.post("/tickets")
            path = f"{PATH}?ticket={answer.json().get('ticket')}"
            if answer.status_code == 201 and await status_of(reader.port, path) == 200:
                return path
            await asyncio.sleep(0.1)


async def test_a_ticket_is_good_once_over_two_gateways(relayed: str, nats: NatsServer) -> None:
    async with sharing(nats.url, relayed) as (one, other):
        for issuer, reader in ((one, other), (other, one), (one, one)):
            path = f"{PATH}?ticket={await issue(issuer)}"
            assert await status_of(reader.port, path) == 200
            assert [await status_of(it.port, path) for it in (one, other)] == [401, 401]


async def test_of_many_that_use_a_ticket_at_once_one_succeeds(
    relayed: str, nats: NatsServer
) -> None:
    async with sharing(nats.url, relayed, each=100) as sites:
        for _ in range(5):
            path = f"{PATH}?ticket={await issue(sites[0])}"
            asked = [status_of(site.port, path) for site in sites for _ in range(10)]
            assert sorted(await asyncio.gather(*asked)) == [200] + [401] * 19


async def test_unused_tickets_are_counted_over_both_and_used_ones_are_not(
    relayed: str, nats: NatsServer
) -> None:
    async with sharing(nats.url, relayed, each=100) as (one, other):
        tickets = [await issue((one, other)[n % 2]) for n in range(100)]
        for site in (one, other):
            refused = await site.client.post("/tickets")
            assert refused.status_code == 429
            assert "100 unused tickets" in refused.json()["detail"]
        assert await status_of(one.port, f"{PATH}?ticket={tickets[0]}") == 200
        assert (await other.client.post("/tickets")).status_code == 201


async def test_the_limit_counts_over_both_gateways(relayed: str, nats: NatsServer) -> None:
    async with sharing(nats.url, relayed) as (one, other):
        async with opened(one.port, other.port) as readers:
            assert [it.status for it in readers] == [200, 200]
            assert [await status_of(it.port) for it in (one, other)] == [429, 429]
            readers[0].cut()
            await until_status(other.port, 200)  # the place that is free is free everywhere
        await until_status(one.port, 200)


async def test_of_many_readers_at_once_as_many_are_let_in_as_there_are_places(
    nats: NatsServer,
) -> None:
    async with AsyncExitStack() as stack:
        hosts = [
            await stack.enter_async_context(JetStreamLimits(nats.url, "shop", lease=LEASE))
            for _ in range(5)
        ]
        for _ in range(3):
            asked = [host.readers.acquire("ann", 10) for _ in range(8) for host in hosts]
            granted = await asyncio.gather(*asked)
            assert sum(granted) == 10
            assert await hosts[0].readers.acquire("ben", 10)
            hosts[0].readers.release("ben")
            for host, is_granted in zip(hosts * 8, granted, strict=True):
                if is_granted:
                    host.readers.release("ann")
            async with asyncio.timeout(PATIENCE):
                while not await hosts[4].readers.acquire("ann", 1):
                    await asyncio.sleep(0.01)
            hosts[4].readers.release("ann")


async def test_acquiring_that_is_cancelled_leaves_no_place_taken(nats: NatsServer) -> None:
    async with (
        JetStreamLimits(nats.url, "shop", lease=LEASE) as one,
        JetStreamLimits(nats.url, "shop", lease=LEASE) as other,
    ):
        for turns in range(30):
            asking = asyncio.create_task(one.readers.acquire("ann", 1))
            for _ in range(turns):
                await asyncio.sleep(0)
            asking.cancel()
            (result,) = await asyncio.gather(asking, return_exceptions=True)
            if result is True:
                one.readers.release("ann")
            async with asyncio.timeout(PATIENCE):
                while not await other.readers.acquire("ann", 1):
                    await asyncio.sleep(0.01)
            other.readers.release("ann")


async def test_it_ends_whatever_it_is_doing(nats: NatsServer) -> None:
    async with asyncio.timeout(PATIENCE):
        for turns in range(150):
            limits = JetStreamLimits(nats.url, "shop", lease=LEASE)
            async with limits:
                assert await limits.readers.acquire("ann", 1000)
                limits.readers.release("ann")
                for _ in range(turns):
                    await asyncio.sleep(0)


@asynccontextmanager
async def gateway_process(
    nats: str, database: str
) -> AsyncIterator[tuple[int, asyncio.subprocess.Process]]:
    """Run `rowsignal gateway` with two streams for a principal; give its port and itself."""
    port = free_port()
    command = Path(sys.executable).with_name("rowsignal")
    process = await asyncio.create_subprocess_exec(
        *(str(command), "gateway", "--nats", nats, "--database", database, "--port", str(port)),
        env=os.environ | {"ROWSIGNAL_MAX_STREAMS_PER_PRINCIPAL": "2"},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient() as client:
            while True:
                assert process.returncode is None
                try:
                    await client.get(f"http://127.0.0.1:{port}/health/ready")
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                else:
                    break
        yield port, process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def test_a_gateway_that_is_killed_frees_its_places_after_the_lease(
    relayed: str, nats: NatsServer
) -> None:
    async with sharing(nats.url, relayed, count=1) as (one,):  # its lease is that of the bucket
        async with (
            gateway_process(nats.url, relayed) as (port, process),
            opened(port, port, path=f"/v1{PATH}") as readers,
        ):
            assert [it.status for it in readers] == [200, 200]
            assert await status_of(one.port) == 429
            process.kill()
            await process.wait()
            assert await status_of(one.port) == 429  # as long as it may be alive
            await until_status(one.port, 200)
        async with opened(one.port, one.port) as readers:
            assert [it.status for it in readers] == [200, 200]


async def test_a_gateway_that_ends_frees_its_places_at_once(relayed: str, nats: NatsServer) -> None:
    async with AsyncExitStack() as stack:
        (one,) = await stack.enter_async_context(sharing(nats.url, relayed, count=1))
        async with sharing(nats.url, relayed, count=1) as (other,), opened(other.port, other.port):
            assert await status_of(one.port) == 429
        assert await status_of(one.port) == 200


async def test_a_gateway_that_was_stopped_for_longer_than_its_lease_counts_again(
    relayed: str, nats: NatsServer
) -> None:
    async with (
        sharing(nats.url, relayed, count=1) as (one,),
        gateway_process(nats.url, relayed) as (port, process),
        opened(port, port, path=f"/v1{PATH}") as readers,
    ):
        assert [it.status for it in readers] == [200, 200]
        process.send_signal(signal.SIGSTOP)
        await until_status(one.port, 200)
        process.send_signal(signal.SIGCONT)
        await until_status(one.port, 429)


@pytest.mark.timeout(180)
async def test_limits_and_tickets_outlive_a_node_of_three(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    await make_tables(engine, row_values=True)
    database = engine.url.database or ""
    async with (
        nats_cluster(tmp_path) as cluster,
        client_of(cluster.url) as client,
        relaying(engine, cluster.url, stream=StreamSettings(replicas=3)),
    ):
        await StreamReader(client, database).next()
        async with (
            sharing(cluster.url, database, each=3) as (one, other),
            opened(one.port, other.port) as readers,
        ):
            await issue(one)  # makes the bucket
            await kill_leader(cluster, client, "KV_rowsignal-tickets")
            path = await used_ticket(one, other)
            assert [await status_of(it.port, path) for it in (one, other)] == [401, 401]
            async with opened(one.port):
                await until_status(other.port, 429)
            assert not any(it.is_over for it in readers)


async def test_while_nats_is_away_each_process_counts_alone_and_tickets_are_refused(
    relayed: str, nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with sharing(nats.url, relayed) as (one, other):
        ticket = await issue(one)
        async with opened(one.port, other.port) as readers:
            assert [it.status for it in readers] == [200, 200]
            await nats.kill()
            async with asyncio.timeout(PATIENCE):
                while "in this process alone" not in caplog.text:
                    await asyncio.sleep(0.05)
            issued = await one.client.post("/tickets")
            used = await other.client.get(PATH, params={"ticket": ticket})
            assert [issued.status_code, used.status_code] == [503, 503]
            assert "Tickets are kept in NATS" in issued.json()["detail"] == used.json()["detail"]
            await nats.start()
            await until_status(one.port, 429)  # what was lost with NATS is said again
            await until_status(other.port, 429)
            used = await other.client.get(PATH, params={"ticket": ticket})
            assert used.status_code == 401  # never good twice: it may have been used
        await until_status(one.port, 200)


async def test_without_nats_at_the_start_the_limits_are_those_of_the_process(
    nats: NatsServer,
) -> None:
    await nats.kill()
    async with JetStreamLimits(nats.url, "shop", lease=LEASE) as limits:
        granted = [await limits.readers.acquire("ann", 2) for _ in range(3)]
        assert granted == [True, True, False]
        assert await limits.others() == ()
        await nats.start()
        async with JetStreamLimits(nats.url, "shop", lease=LEASE) as other:
            async with asyncio.timeout(PATIENCE):
                while await other.readers.acquire("ann", 2):
                    other.readers.release("ann")
                    await asyncio.sleep(0.02)


async def _fail() -> None:
    raise ZeroDivisionError("x")


async def _hang() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize("go_wrong", [_fail, _hang])
async def test_sharing_goes_on_after_what_nobody_has_foreseen(
    nats: NatsServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    go_wrong: Callable[[], Awaitable[None]],
) -> None:
    settle, faults = JetStreamReaderCounts.settle, iter([go_wrong])

    async def go_wrong_once(self: JetStreamReaderCounts) -> None:
        if fault := next(faults, None):
            await fault()
        await settle(self)

    monkeypatch.setattr(JetStreamReaderCounts, "settle", go_wrong_once)
    monkeypatch.setattr(shared_limits, "STEP_TIMEOUT", 0.2)
    async with (
        JetStreamLimits(nats.url, "shop", lease=LEASE) as one,
        JetStreamLimits(nats.url, "shop", lease=LEASE) as other,
    ):
        assert await one.readers.acquire("ann", 1)
        async with asyncio.timeout(PATIENCE):
            while await other.readers.acquire("ann", 1):
                other.readers.release("ann")
                await asyncio.sleep(0.02)
    assert "in this process alone" in caplog.text
    assert ("have failed" in caplog.text) == (go_wrong is _fail)


async def test_what_others_write_into_the_buckets_does_no_harm(
    nats: NatsServer, client: Client
) -> None:
    async with JetStreamLimits(nats.url, "shop", lease=30) as limits:
        assert await limits.readers.acquire("ann", 2)
        (key,) = limits.readers._accounts
        for value in (b"no json", b"[1]", b'{"x": "y"}', b'{"dead": 5, "b": -1}', b"[" * 100_000):
            await client.jetstream().publish(f"$KV.rowsignal-readers.{key}", value)
            await client.jetstream().publish(f"$KV.rowsignal-processes.shop.{len(value)}x", value)
            assert await limits.readers.acquire("ann", 2)
            assert not await limits.readers.acquire("ann", 2)
            limits.readers.release("ann")
        assert await limits.others() == []


async def test_the_list_of_readers_has_those_of_the_other_processes(
    engine: AsyncEngine, database_url: str, nats: NatsServer, tmp_path: Path
) -> None:
    await make_tables(engine)
    settings = Settings(
        database_url=database_url,
        token_secret=SECRET,
        ticket_dir=tmp_path / "tickets",
        shared_limits=nats.url,
    )
    everything, own = bearer({"*": {}}, status=True), bearer({"public.orders": {}}, status=True)
    async with AsyncExitStack() as stack:
        one, other = [
            await stack.enter_async_context(serving(create_app(settings))) for _ in range(2)
        ]
        for site, headers in ((one, everything), (other, own | {"X": "y"})):
            reader = reading(site.port, "/v1/changes/orders", headers=headers)
            assert (await stack.enter_async_context(reader)).status == 200
        async with asyncio.timeout(PATIENCE):
            while True:
                found = (await one.client.get("/v1/readers", headers=everything)).json()
                if found["total"] == 2:
                    break
                await asyncio.sleep(0.2)
        tables = [it["tables"] for it in found["readers"]]
        assert tables == [["public.orders"]] * 2
        assert sum("host" in it for it in found["readers"]) == 1
        ticket = (await one.client.post("/v1/tickets", headers=own)).json()["ticket"]
        assert await status_of(other.port, f"/v1/changes/orders?ticket={ticket}") == 200
        assert await status_of(one.port, f"/v1/changes/orders?ticket={ticket}") == 401
