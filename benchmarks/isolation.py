"""What a huge transaction, a flood and a locked table do to readers and waits of other tables.

Each figure is relative to the same reader or wait in peace, measured a moment before. The service
is a process of its own, on uvicorn; latencies are from COMMIT being sent to the row being read.
"""

import asyncio
import os
import re
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from statistics import median, quantiles

import asyncpg
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.processes import Peer, process, serve
from benchmarks.report import Report
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.sse import Limits, create_sse_router
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change

HUGE = 1_000_000
FLOOD = 500_000
QUIET_ROWS = 100
PACE = 0.05
HEARTBEAT = 1.0
WAIT_ROUNDS = 20
FRAME = re.compile(rb"event: (\w[\w-]*)\r?\n")


class Base(DeclarativeBase):
    pass


class Numbered:
    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(default=0)


class Busy(Numbered, Base):
    __tablename__ = "busy"


class Calm(Numbered, Base):
    __tablename__ = "calm"


class Unread(Numbered, Base):
    __tablename__ = "unread"


class Locked(Numbered, Base):
    __tablename__ = "locked"


class Free(Numbered, Base):
    __tablename__ = "free"


def our_app(url: str) -> FastAPI:
    """Serve the tables that are read."""
    app = FastAPI()
    app.include_router(
        create_sse_router(
            create_async_engine(url), [Busy, Calm], limits=Limits(heartbeat=HEARTBEAT)
        )
    )
    return app


class Stream:
    """One open stream: when its frames arrived, and when each row did."""

    def __init__(self) -> None:
        self.frames: list[float] = []
        self.opened = asyncio.Event()  # what is written before may have no reader yet
        self.rows: dict[int, asyncio.Future[float]] = {}

    async def follow(self, port: int, table: str) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET /changes/{table} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        tail = b""  # a row may be cut in two
        try:
            while data := await reader.read(1 << 20):
                now = time.perf_counter()
                if FRAME.search(data):
                    self.frames.append(now)
                    self.opened.set()
                for number in re.findall(rb'"id": ?(\d+)\b', tail + data) if self.rows else ():
                    future = self.rows.get(int(number))
                    if future is not None and not future.done():
                        future.set_result(now)
                tail = data[-64:]
        finally:
            writer.close()

    def gap(self, since: float) -> float:
        """Return the longest silence since a moment, in seconds."""
        marks = [since, *(mark for mark in self.frames if mark > since), time.perf_counter()]
        return max(later - earlier for earlier, later in pairwise(marks))


@asynccontextmanager
async def open_stream(port: int, table: str) -> AsyncIterator[Stream]:
    stream = Stream()
    task = asyncio.create_task(stream.follow(port, table))
    try:
        await stream.opened.wait()
        yield stream
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Latencies:
    """Inserts rows into the calm table, one at a time, and waits for each to arrive."""

    def __init__(self, connection: asyncpg.Connection, stream: Stream) -> None:
        self._connection = connection
        self._stream = stream
        self._number = 0

    async def one(self) -> float:
        self._number += 1
        arrival = asyncio.get_running_loop().create_future()
        self._stream.rows[self._number] = arrival
        sent = time.perf_counter()
        await self._connection.execute("insert into calm values ($1, 0)", self._number)
        at: float = await arrival
        return at - sent

    async def several(self, count: int) -> list[float]:
        found = []
        for _ in range(count):
            found.append(await self.one())
            await asyncio.sleep(PACE)
        return found

    async def beside(self, work: asyncio.Task[object], *, longer: float) -> list[float]:
        """Measure while a task is at work, and for some seconds more."""
        found, until = [], float("inf")
        while time.perf_counter() < until:
            found.append(await self.one())
            await asyncio.sleep(PACE)
            if work.done() and until == float("inf"):
                work.result()
                until = time.perf_counter() + longer
        return found


async def prepare(server: EmbeddedPostgres) -> None:
    engine = create_async_engine(server.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(sa.text("insert into locked values (1, 0)"))
        await connection.execute(sa.text("insert into free values (1, 0)"))
    await install_triggers(engine, [Busy, Calm, Unread], log=True)
    await install_triggers(engine, [Locked, Free])
    await engine.dispose()


async def streams(server: EmbeddedPostgres, ours: Peer, report: Report) -> None:
    writer, other = await asyncpg.connect(server.dsn), await asyncpg.connect(server.dsn)
    async with open_stream(ours.port, "calm") as calm, open_stream(ours.port, "busy") as busy:
        latencies = Latencies(writer, calm)
        await latencies.several(5)  # the first ones find cold caches
        quiet = median(await latencies.several(QUIET_ROWS))
        for name, table, rows in (("huge transaction", "busy", HUGE), ("flood", "unread", FLOOD)):
            statement = f"insert into {table} select n, 0 from generate_series(1, {rows}) n"
            began = time.perf_counter()
            work = asyncio.create_task(other.execute(statement, timeout=600))
            found = await latencies.beside(work, longer=10)
            p95 = quantiles(found, n=20)[18]
            report.figures[f"{name}: latency, ms"] = {
                "quiet p50": round(quiet * 1000, 2),
                "p50": round(median(found) * 1000, 2),
                "p95": round(p95 * 1000, 2),
                "worst": round(max(found) * 1000, 2),
            }
            if table == "busy":
                report.ratio("other_table_latency_under_huge_transaction", p95 / quiet, at_most=10)
                report.ratio("heartbeat_gap", calm.gap(began) / HEARTBEAT, at_most=2)
                await delivered(other, busy, HUGE + 1)
            else:
                report.ratio("unread_table_flood_latency", p95 / quiet, at_most=10)
    await writer.close()
    await other.close()


async def delivered(connection: asyncpg.Connection, stream: Stream, number: int) -> None:
    """Wait until a stream has delivered all that was committed to the busy table."""
    arrival = stream.rows[number] = asyncio.get_running_loop().create_future()
    await connection.execute("insert into busy values ($1, 0)", number)
    await arrival


async def wait_latency(engine: AsyncEngine, writer: asyncpg.Connection) -> float:
    """Return the median seconds from a change of the free table to its resolved wait."""
    seconds = []
    for _ in range(WAIT_ROUNDS):
        waiting = asyncio.create_task(wait_for_row_change(engine, Free, 1, timeout=60))
        await asyncio.sleep(PACE * 2)
        sent = time.perf_counter()
        await writer.execute("update free set status = status + 1")
        await waiting
        seconds.append(time.perf_counter() - sent)
    return median(seconds)


async def waits(server: EmbeddedPostgres, report: Report) -> None:
    engine = create_async_engine(server.url)
    writer, locker = await asyncpg.connect(server.dsn), await asyncpg.connect(server.dsn)
    warm = asyncio.create_task(wait_for_row_change(engine, Free, 1))  # keeps the table armed
    await asyncio.sleep(1)
    quiet = await wait_latency(engine, writer)
    others = [asyncio.create_task(wait_for_row_change(engine, Locked, 1)) for _ in range(10)]
    await asyncio.sleep(1)
    async with locker.transaction():
        await locker.execute("alter table locked add column more int")
        others += [asyncio.create_task(wait_for_row_change(engine, Locked, 1)) for _ in range(10)]
        beside = await wait_latency(engine, writer)
    for task in (warm, *others):
        task.cancel()
    await asyncio.gather(warm, *others, return_exceptions=True)
    report.figures["waits, ms"] = {
        "quiet": round(quiet * 1000, 2),
        "beside a locked table": round(beside * 1000, 2),
    }
    report.ratio("locked_table_other_waits", beside / quiet, at_most=10)
    await Dispatcher.of(engine).listener.close()
    for connection in (writer, locker):
        await connection.close()
    await engine.dispose()


async def run() -> dict[str, object]:
    """Measure streams, then waits."""
    report = Report("isolation")
    with EmbeddedPostgres() as server:
        await prepare(server)
        async with process("benchmarks.isolation", "ours", server.url) as ours:
            await streams(server, ours, report)
        await waits(server, report)
    return report.as_dict()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    serve(our_app(sys.argv[2]))
