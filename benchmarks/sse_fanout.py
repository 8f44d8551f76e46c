"""One process with 1000 readers, against a bare ASGI application and a bare listener.

Each server is a process of its own, on uvicorn. The bare application writes bytes that were
prepared before it began, in as many writes, with as many events in each, as ours made of the same
changes. The bare listener writes what a notification carries to a socket that is open; the bare
reader, told as little as we are, asks for the row by its key first.
"""

import asyncio
import contextlib
import json
import os
import re
import selectors
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from itertools import count, islice
from statistics import median
from typing import Any

import asyncpg
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.processes import process, serve
from benchmarks.report import Report, spread
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.listener import Listener
from rowsignal.sse import Grant, Limits, Outlet, TableGrant
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.http.router import router_of
from rowsignal.triggers import install_triggers

READERS = 1000
ROWS_A_SECOND = 200
SECONDS = 6.0
ROUNDS = 5  # of deliveries: what a shared machine does to one of them, a median leaves out
LATENCY_ROUNDS = 3
LATENCY_ROWS = 200
LATENCY_PACE = 0.05
REQUEST = "GET /changes/ticks HTTP/1.1\r\nHost: localhost\r\n\r\n"
NUMBER = re.compile(rb'(?:"id":|data: )(\d{6})\b')

metadata = sa.MetaData()
ticks = sa.Table(
    "ticks",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True),
    sa.Column("price", sa.Numeric),
    sa.Column("at", sa.DateTime(timezone=True), server_default=sa.func.now()),
)

numbers = count(100_000)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


def our_app(database_url: str) -> FastAPI:
    engine = create_async_engine(database_url)
    limits = Limits(readers=READERS + 100, readers_each=READERS + 100, buffer=8 * 2**20)
    outlet = Outlet(engine, exposures_of([ticks]), limits)
    flushes: list[int] = []
    outlet.fanout.flushed = lambda events: flushes.append(len(events))

    async def everybody() -> Grant:
        return Grant(tables={"*": TableGrant()})

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with Listener(engine):
            yield

    app = FastAPI(lifespan=lifespan)
    app.include_router(router_of(outlet, everybody))

    @app.get("/flushes")
    async def take() -> list[int]:
        taken, flushes[:] = list(flushes), []
        return taken

    return app


class BareApp:
    """Writes a chunk to every open answer each time it is told to."""

    def __init__(self) -> None:
        self.tick = asyncio.Event()
        self.chunk = b""
        self.tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: MutableMapping[str, Any], _: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if scope["path"] == "/run":
            order = json.loads(scope["query_string"].decode().replace("%22", '"'))
            self.tasks.add(asyncio.create_task(self.run(**order)))
            await send({"type": "http.response.body", "body": b""})
            return
        while True:
            await self.tick.wait()
            await send({"type": "http.response.body", "body": self.chunk, "more_body": True})

    async def run(self, size: int, writes: int, seconds: float) -> None:
        self.chunk, loop = b"x" * size, asyncio.get_running_loop()
        began = loop.time()
        for number in range(writes):
            await asyncio.sleep(began + number * seconds / writes - loop.time())
            ready, self.tick = self.tick, asyncio.Event()
            ready.set()


async def serve_bare(dsn: str, *, reads: bool) -> None:
    """Write what each notification carries, or the row that it names, to whoever has connected."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    connection, other = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
    woken: asyncio.Queue[str] = asyncio.Queue()

    def write(text: str) -> None:
        for writer in writers:
            writer.write(f"data: {text}\n\n".encode())

    def hear(*notification: Any) -> None:
        if reads:
            woken.put_nowait(notification[-1])
        else:
            write(notification[-1])

    await connection.add_listener("bare", hear)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    while True:
        number = int(await woken.get())
        write(await other.fetchval("select id::text from plain where id = $1", number))


class Crowd:
    """Many sockets whose bytes are counted and thrown away."""

    def __init__(self) -> None:
        self.selector = selectors.EpollSelector()
        self.sockets: list[socket.socket] = []
        self.received = 0
        self._buffer = bytearray(1 << 20)
        asyncio.get_running_loop().add_reader(self.selector.fileno(), self._read)

    def join(self, port: int, count: int, path: str) -> None:
        request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for _ in range(count):
            sock = socket.create_connection(("127.0.0.1", port))
            sock.sendall(request)
            sock.setblocking(False)
            self.selector.register(sock, selectors.EVENT_READ)
            self.sockets.append(sock)

    def _read(self) -> None:
        for key, _ in self.selector.select(0):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                self.received += key.fileobj.recv_into(self._buffer)  # type: ignore[union-attr]

    async def quiet(self, *, after: float = 2.0) -> None:
        """Wait until nothing has come for a while."""
        seen = -1
        while seen != self.received:
            seen = self.received
            await asyncio.sleep(after)

    def leave(self) -> None:
        asyncio.get_running_loop().remove_reader(self.selector.fileno())
        for sock in self.sockets:
            sock.close()
        self.selector.close()


async def get(port: int, path: str) -> str:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    answer = (await reader.read()).decode()
    writer.close()
    return answer.partition("\r\n\r\n")[2]


async def insert_steadily(dsn: str, rows: int, seconds: float) -> dict[int, float]:
    """Insert rows one by one; return when each statement was sent, by the row's number."""
    connection = await asyncpg.connect(dsn)
    loop = asyncio.get_running_loop()
    began, sent = loop.time(), {}
    for place, number in enumerate(islice(numbers, rows)):
        await asyncio.sleep(began + place * seconds / rows - loop.time())
        sent[number] = time.perf_counter()
        await connection.execute("insert into ticks values ($1, 101.25)", number)
    await connection.close()
    return sent


async def our_deliveries(server: EmbeddedPostgres) -> tuple[dict[str, float], list[float]]:
    """Return deliveries a CPU second, memory a reader, how bytes were joined, and latencies."""
    async with process("benchmarks.sse_fanout", "ours", server.url) as ours:
        crowd = Crowd()
        crowd.join(ours.port, 50, "/changes/ticks")
        await crowd.quiet()
        before = ours.usage.memory_info().rss
        crowd.join(ours.port, READERS, "/changes/ticks")
        await crowd.quiet()
        idle = ours.usage.memory_info().rss
        marks: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
        reading = asyncio.create_task(arrivals(ours.port, REQUEST, marks))
        await asyncio.sleep(1)
        await get(ours.port, "/flushes")
        cpu, received = ours.cpu(), crowd.received
        rows = int(ROWS_A_SECOND * SECONDS)
        sent = await insert_steadily(server.dsn, rows, SECONDS)
        await crowd.quiet()
        cpu, received = ours.cpu() - cpu, crowd.received - received
        reading.cancel()
        arrived: dict[int, float] = {}
        while not marks.empty():
            arrived.setdefault(*marks.get_nowait())  # a number is in the key and in the row
        flushes = json.loads(await get(ours.port, "/flushes"))
        crowd.leave()
    readers = READERS + 50
    assert sum(flushes) == rows, (sum(flushes), rows)
    assert len(arrived) == rows, (len(arrived), rows)
    found = {
        "per_cpu_second": rows * readers / cpu,
        "kib_per_reader": (idle - before) / READERS / 1024,
        "writes": len(flushes),
        "bytes_each": received / readers / len(flushes),
        "rows": rows,
    }
    return found, [at - sent[number] for number, at in arrived.items()]


async def bare_deliveries(like: dict[str, float]) -> float:
    """Return deliveries a CPU second of prepared bytes with the same joining."""
    async with process("benchmarks.sse_fanout", "bare") as bare:
        crowd = Crowd()
        crowd.join(bare.port, READERS + 50, "/")
        await crowd.quiet()
        cpu = bare.cpu()
        order = {"size": int(like["bytes_each"]), "writes": like["writes"], "seconds": SECONDS}
        await get(bare.port, "/run?" + json.dumps(order, separators=(",", ":")).replace('"', "%22"))
        await asyncio.sleep(SECONDS)
        await crowd.quiet()
        cpu = bare.cpu() - cpu
        crowd.leave()
    return like["rows"] * (READERS + 50) / cpu


async def arrivals(port: int, request: str, marks: asyncio.Queue[tuple[int, float]]) -> None:
    """Note when each row arrives, by its number."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request.encode())
    while data := await reader.read(65536):
        now = time.perf_counter()
        for number in NUMBER.findall(data):
            marks.put_nowait((int(number), now))


async def latencies(dsn: str, port: int, request: str, statement: str) -> list[float]:
    """Return the seconds from each COMMIT being sent to the row being read from the socket."""
    marks: asyncio.Queue[tuple[int, float]] = asyncio.Queue()
    reading = asyncio.create_task(arrivals(port, request, marks))
    connection = await asyncpg.connect(dsn)
    await asyncio.sleep(1.5)  # until the log sleeps and waits to be woken
    seconds = []
    for number in islice(numbers, LATENCY_ROWS):
        await connection.execute("begin")
        await connection.execute(statement.replace("?", str(number)))
        sent = time.perf_counter()
        await connection.execute("commit")
        arrived = -1
        while arrived != number:
            arrived, at = await marks.get()
        seconds.append(at - sent)
        await asyncio.sleep(LATENCY_PACE)
    reading.cancel()
    await connection.close()
    return seconds


async def our_latencies(server: EmbeddedPostgres) -> list[float]:
    async with process("benchmarks.sse_fanout", "ours", server.url) as ours:
        statement = "insert into ticks values (?, 1)"
        return await latencies(server.dsn, ours.port, REQUEST, statement)


async def bare_latencies(server: EmbeddedPostgres, kind: str) -> list[float]:
    async with process("benchmarks.sse_fanout", kind, server.dsn) as bare:
        inserted = "with it as (insert into plain values (?, 1) returning id)"
        statement = f"{inserted} select pg_notify('bare', id::text) from it"
        return await latencies(server.dsn, bare.port, "", statement)


async def prepare(server: EmbeddedPostgres) -> None:
    engine = create_async_engine(server.url)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        await connection.execute(sa.text("create table plain (id bigint primary key, v numeric)"))
    await install_triggers(engine, [ticks], log=True, row_values=True)
    await engine.dispose()


async def run() -> dict[str, object]:
    report = Report("sse_fanout")
    with EmbeddedPostgres() as server:
        await prepare(server)
        slow, fast, reading = [], [], []
        for _ in range(LATENCY_ROUNDS):
            slow += await our_latencies(server)
            fast += await bare_latencies(server, "listener")
            reading += await bare_latencies(server, "reader")
        ours, ratios, loaded = [], [], []
        for _ in range(ROUNDS):
            found, under_load = await our_deliveries(server)
            ours.append(found)
            loaded += under_load
            bare = await bare_deliveries(ours[-1])
            ratios.append(ours[-1]["per_cpu_second"] / bare)
    report.figures |= {
        "readers": READERS,
        "deliveries_per_cpu_second": round(median(it["per_cpu_second"] for it in ours)),
        "rows_a_write": round(median(it["rows"] / it["writes"] for it in ours), 1),
        "ratio_of_each_round": [round(ratio, 3) for ratio in ratios],
        "latency": spread(slow),
        "latency_beside_1000_readers": spread(loaded),
        "bare_latency": spread(fast),
        "bare_reader_latency": spread(reading),
    }
    report.ratio("deliveries_over_bare", median(ratios), at_least=0.85)
    report.ratio("kib_per_reader", median(it["kib_per_reader"] for it in ours), at_most=50)
    report.ratio("latency_over_bare", median(slow) / median(fast), at_most=2)
    report.ratio("latency_over_bare_reader", median(slow) / median(reading), at_most=1.5)
    return report.as_dict()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    match sys.argv[1:]:
        case ["ours", url]:
            serve(our_app(url))
        case ["bare"]:
            serve(BareApp())
        case ["listener" | "reader" as kind, dsn]:
            asyncio.run(serve_bare(dsn, reads=kind == "reader"))
