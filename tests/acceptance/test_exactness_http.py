"""Exactness over HTTP: whatever breaks in between, each committed change arrives once, in order.

Writers use savepoints, roll back, and keep transactions open; readers are cut after random bytes
and come back with the last id that they saw whole, as browsers do; the service is restarted, and
so is PostgreSQL. What was committed is known from a trigger of the test's own.
"""

import asyncio
import os
import random
from collections import Counter, defaultdict
from contextlib import suppress

import asyncpg
import pytest
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.listener import Listener
from rowsignal.sse import Limits, Outlet
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.grants import grant_everything
from rowsignal.sse.http.router import router_of
from support.event_streams import EventReader, Order, make_tables, reading
from support.proxy import Proxy
from support.web_server import serving

SECONDS = 60.0 if os.environ.get("ROWSIGNAL_STRESS") == "minutes" else 4.0
SILENCE = 3.0  # longer than some heartbeats: the connection is dead
ROWS = 12
SENTINEL = 999
AUDIT = """
create table audit (id bigint generated always as identity, key bigint, operation text, xid text);
create function note() returns trigger language plpgsql as $$
begin
    insert into audit (key, operation, xid)
    values (coalesce(new.id, old.id), lower(tg_op), pg_current_xact_id()::text);
    return null;
end $$;
create trigger a_note after insert or update or delete on orders
    for each row execute function note();
"""
LOST = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)


class ClosingProxy(Proxy):
    """Lets go of clients whose target is not there."""

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await super()._link(reader, writer)
        finally:
            writer.transport.abort()


class Reader:
    """A client that always comes back, and counts what it was told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.last_id = ""
        self.changes: list[tuple[int, str, str]] = []
        self.rows: dict[int, str | None] = {}
        self.snapshots = 0
        self.connects = 0
        self.is_started = asyncio.Event()
        self.is_done = asyncio.Event()

    async def follow(self, port: int) -> None:
        while not self.is_done.is_set():
            self.connects += 1
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError):
                headers = {"Last-Event-ID": self.last_id} if self.last_id else {}
                async with reading(port, self.path, headers=headers, patience=SILENCE) as stream:
                    if stream.status == 200:
                        await self._read(stream)
            await asyncio.sleep(0.02)

    async def _read(self, stream: EventReader) -> None:
        if "snapshot=true" in self.path and not self.last_id:
            self.rows.clear()
            self.changes.clear()
        taken = 0
        while not self.is_done.is_set() and await self._hears(stream):
            for event in stream.events[taken:]:
                self._take(event)
            taken = len(stream.events)
            self.last_id = stream.last_id or self.last_id

    async def _hears(self, stream: EventReader) -> bool:
        async with asyncio.timeout(SILENCE):
            return await stream.read_some()

    def _take(self, event) -> None:
        assert event.name != "reset", event.data
        if event.id:
            self.is_started.set()
        self.snapshots += event.name == "snapshot"
        if event.name in {"snapshot", "insert", "update"}:
            self.rows[event.key] = event.data["row"]["status"]
        elif event.name == "delete":
            self.rows.pop(event.key, None)
        if "operation" in event.data:
            self.changes.append((event.key, event.name, event.data["transaction_id"]))
            if event.key == SENTINEL:
                self.is_done.set()


async def write(dsn: str, seed: int, until: float) -> None:
    """Change rows at random until the time is up; what fails is tried no further."""
    chance = random.Random(seed)
    loop = asyncio.get_running_loop()
    while loop.time() < until:
        with suppress(*LOST):
            connection = await asyncpg.connect(dsn, timeout=3)
            try:
                while loop.time() < until:
                    await transact(connection, chance)
            finally:
                connection.terminate()
        await asyncio.sleep(0.05)


async def transact(connection: asyncpg.Connection, chance: random.Random) -> None:
    transaction = connection.transaction()
    await transaction.start()
    # Rows in order of their keys: writers must not deadlock with one another.
    for key in sorted(chance.sample(range(ROWS), chance.randint(1, 3))):
        savepoint = connection.transaction()
        await savepoint.start()
        await change(connection, key, chance)
        await (savepoint.rollback() if chance.random() < 0.25 else savepoint.commit())
        if chance.random() < 0.03:
            await asyncio.sleep(chance.uniform(0.1, 0.6))
    await (transaction.rollback() if chance.random() < 0.15 else transaction.commit())


async def change(connection: asyncpg.Connection, key: int, chance: random.Random) -> None:
    value = f"{chance.random():.6f}"
    if chance.random() < 0.2:
        await connection.execute("delete from orders where id = $1", key)
        return
    await connection.execute(
        "insert into orders values ($1, $2, 1, 7, '') on conflict (id) do update set status = $2",
        key,
        value,
    )


def app_of(engine) -> FastAPI:
    outlet = Outlet(engine, exposures_of([Order]), Limits(heartbeat=0.3, tick=0.01, retry=0.1))
    app = FastAPI()
    app.include_router(router_of(outlet, grant_everything))
    return app


async def keep_restarting(engine, port: int, times: int, pause: float, done: asyncio.Event) -> None:
    """Serve, stop, and serve again on the same port; the last time until done.

    Told by an event, not cancelled: a server whose stop is cancelled leaves the event loop a socket
    that is closed already, and the next connection with its number would never hear anything.
    """
    for number in range(times + 1):
        async with serving(app_of(engine), port=port, grace=1):
            with suppress(TimeoutError):
                async with asyncio.timeout(pause if number < times else None):
                    await done.wait()
        if done.is_set():
            return


async def keep_cutting(proxy, seed: int) -> None:
    chance = random.Random(seed)
    while True:
        proxy.cut_after = chance.choice([None, chance.randint(1, 200), chance.randint(200, 20_000)])
        await asyncio.sleep(chance.uniform(0.02, 0.3))
        if chance.random() < 0.2:
            await proxy.cut()


async def told_in_order(dsn: str) -> list[tuple[int, str, str]]:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("select key, operation, xid from audit order by id")
    await connection.close()
    return [tuple(record) for record in found]


async def table_now(dsn: str) -> dict[int, str]:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("select id, status from orders")
    await connection.close()
    return dict(tuple(record) for record in found)


def by_row(changes) -> dict[int, list[str]]:
    rows = defaultdict(list)
    for key, _, xid in changes:
        rows[key].append(xid)
    return rows


@pytest.mark.stress
@pytest.mark.timeout(SECONDS * 3 + 60)
async def test_each_committed_change_arrives_once_and_in_order_whatever_breaks():
    seed = random.randrange(2**32)
    async with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url, pool_pre_ping=True)
        await make_tables(engine)
        admin = await asyncpg.connect(server.dsn)
        await admin.execute(AUDIT)
        await admin.close()
        followers = [Reader("/changes/orders") for _ in range(4)]
        late = [Reader("/changes/orders?snapshot=true") for _ in range(2)]
        loop = asyncio.get_running_loop()
        port = free_port()
        proxy = ClosingProxy(("127.0.0.1", port))
        await proxy.start()
        async with asyncio.TaskGroup() as tasks:
            done = asyncio.Event()
            serving = keep_restarting(engine, port, 3, SECONDS / 4, done)
            tasks.create_task(serving)
            reading = [tasks.create_task(it.follow(proxy.port)) for it in followers]
            await asyncio.gather(*(reader.is_started.wait() for reader in followers))
            cutting = tasks.create_task(keep_cutting(proxy, seed))
            end = loop.time() + SECONDS
            writing = [tasks.create_task(write(server.dsn, seed + n, end)) for n in range(8)]
            await asyncio.sleep(SECONDS / 3)
            reading += [tasks.create_task(it.follow(proxy.port)) for it in late]
            await asyncio.to_thread(server.restart)
            await asyncio.gather(*writing)
            cutting.cancel()
            proxy.cut_after = None
            await proxy.cut()
            # A reader without an id begins anew: its snapshot would hold the last change as a row.
            await asyncio.gather(*(reader.is_started.wait() for reader in late))
            await finish(server.dsn)
            await asyncio.gather(*reading)
            done.set()
        await proxy.close()
        await Listener.of(engine).close()
        await engine.dispose()
        truth, table = await told_in_order(server.dsn), await table_now(server.dsn)
    assert len(truth) > 50
    for number, reader in enumerate(followers):
        told = Counter((key, xid) for key, _, xid in reader.changes)
        wanted = Counter((key, xid) for key, _, xid in truth)
        assert told - wanted == Counter(), f"reader {number} was told twice (seed {seed})"
        assert wanted - told == Counter(), f"reader {number} missed changes (seed {seed})"
        assert by_row(reader.changes) == by_row(truth), f"out of order (seed {seed})"
    for reader in followers + late:
        assert reader.rows == table, f"seed {seed}"
    assert all(reader.snapshots for reader in late)
    assert sum(reader.connects for reader in followers) > 3 * len(followers)


async def finish(dsn: str) -> None:
    """Commit the change that everybody waits for."""
    connection = await asyncpg.connect(dsn)
    await connection.execute("insert into orders values ($1, 'end', 1, 7, '')", SENTINEL)
    await connection.close()
