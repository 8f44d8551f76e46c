"""Readers that hop between gateways while parts go away: nothing lost, doubled or disordered."""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from support.change_log import connect
from support.event_streams import execute, make_tables, reading
from support.gateways import gateway
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import published
from support.web_server import Site

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

ROUNDS = 100 if "ROWSIGNAL_STRESS" not in os.environ else 10_000  # of 100 changes each
ROWS = 100
HOP_AFTER = 400  # events, on average
FILL = f"insert into orders select n, 'open', 0, 1, '' from generate_series(1, {ROWS}) n"


@dataclass
class Hopper:
    """One reader that goes from gateway to gateway with the last id that it got."""

    sites: Sequence[Site]
    begins_with_rows: bool
    totals: dict[int, list[int]] = field(default_factory=dict)
    hops: int = 0
    last_id: str = ""
    is_level: asyncio.Event = field(default_factory=asyncio.Event)

    def is_done(self) -> bool:
        return len(self.totals) == ROWS and all(it[-1] == ROUNDS for it in self.totals.values())

    async def run(self) -> None:
        """Read until every row has counted to the end."""
        chance = random.Random(7)
        while not self.is_done():
            site = self.sites[self.hops % len(self.sites)]
            await self._read(site.port, chance.randint(1, 2 * HOP_AFTER))
            self.hops += 1

    async def _read(self, port: int, most: int) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else None
        rows = "?snapshot=true" if self.begins_with_rows and not self.last_id else ""
        async with reading(port, f"/changes/orders{rows}", headers=headers) as reader:
            seen = 0
            while seen < most and not self.is_done() and await reader.read_some():
                for event in reader.events:
                    assert event.name != "reset", event
                    if event.name in {"insert", "update", "snapshot"}:
                        counted = self.totals.setdefault(event.key, [])
                        counted.append(int(event.data["row"]["total"]))
                        seen += 1
                reader.events.clear()
                # An id counts for all that came before it: a cut never falls between here.
                self.last_id = reader.last_id or self.last_id
                if self.last_id and (rows == "" or "." in self.last_id):
                    self.is_level.set()

    def check(self) -> None:
        """Fail where a count of a row is missing, doubled or out of order."""
        for counted in self.totals.values():
            assert counted == list(range(counted[0], ROUNDS + 1))
        if not self.begins_with_rows:
            assert all(counted[0] == 0 for counted in self.totals.values())


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


async def _write(engine: AsyncEngine, halfway: asyncio.Event) -> None:
    connection = await connect(engine)
    for done in range(ROUNDS):
        await connection.execute("update orders set total = total + 1")
        if done == ROUNDS // 3:
            halfway.set()
    await connection.close()


async def _hop(
    engine: AsyncEngine, hoppers: Sequence[Hopper], fault: asyncio.Event, *, late: bool = False
) -> asyncio.Task[None]:
    """Start readers, and the writer once they are there; return the writer."""
    if late:
        await execute(engine, FILL)
    for hopper in hoppers:
        await hopper.is_level.wait()
    if not late:
        await execute(engine, FILL)
    return asyncio.create_task(_write(engine, fault))


@pytest.mark.parametrize("relayed", ["log", "wal"], indirect=True)
async def test_readers_hop_between_gateways(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway(nats.url, relayed) as one, gateway(nats.url, relayed) as other:
        hoppers = [Hopper([one, other], begins_with_rows=False) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for hopper in hoppers:
                group.create_task(hopper.run())
            await (await _hop(engine, hoppers, asyncio.Event()))
    for hopper in hoppers:
        hopper.check()
        assert hopper.hops > 5


@pytest.mark.parametrize("relayed", ["log", "wal"], indirect=True)
async def test_readers_begin_with_the_rows_while_they_change(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    await execute(engine, FILL)
    halfway = asyncio.Event()
    async with (
        gateway(nats.url, relayed, engine=engine) as one,
        gateway(nats.url, relayed, engine=engine) as other,
    ):
        writing = asyncio.create_task(_write(engine, halfway))
        hoppers = [Hopper([one, other], begins_with_rows=True) for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            for hopper in hoppers:
                group.create_task(hopper.run())
        await writing
    for hopper in hoppers:
        hopper.check()


async def test_all_of_nats_goes_away_and_comes_back(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    halfway = asyncio.Event()
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(gateway(nats.url, relayed)) for _ in range(2)]
        hopper = Hopper(sites, begins_with_rows=False)
        async with asyncio.TaskGroup() as group:
            group.create_task(_patiently(hopper))
            writing = await _hop(engine, [hopper], halfway)
            await halfway.wait()
            await nats.kill()
            await nats.start()
            await writing
    hopper.check()


async def _patiently(hopper: Hopper) -> None:
    """Read on, as browsers do, through answers that say that NATS is away."""
    while not hopper.is_done():
        try:
            await hopper.run()
        except AssertionError:
            raise
        except (OSError, asyncio.IncompleteReadError, TimeoutError):
            continue


async def test_a_gateway_goes_on_when_nats_was_started_again(
    relayed: str, engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> None:
    async with (
        gateway(nats.url, relayed) as site,
        reading(site.port, "/changes/orders") as reader,
    ):
        await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
        await nats.kill()
        await nats.start()
        await execute(engine, FILL)
        await stream.changes(ROWS)
        found = [await reader.until(lambda it: it.name in {"insert", "reset"}) for _ in range(ROWS)]
    assert [it.key for it in found] == list(range(1, ROWS + 1))
