"""How cost grows: catching up with a log, waiting in great numbers, watching many tables.

Catching up is compared with a bare SELECT that reads the same changes from the log and decodes
their keys, as a reader must.
"""

import asyncio
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import sqlalchemy as sa
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.many_waits import queries
from benchmarks.processes import process, serve
from benchmarks.report import Report
from rowsignal.change_log import ChangeLog
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.sse import Limits, create_sse_router
from rowsignal.streams import watch
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change

FEW, SOME, MANY = 20_000, 200_000, 400_000
FEW_WAITS, SOME_WAITS, WAITS = 10_000, 30_000, 100_000
TABLES = 1_000
IDLE_SECONDS = 30


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(default=0)


def our_app(url: str) -> FastAPI:
    app = FastAPI()
    limits = Limits(buffer=64 * 2**20)
    app.include_router(create_sse_router(create_async_engine(url), [Item], limits=limits))
    return app


async def insert_items(writer: asyncpg.Connection, first: int, count: int) -> None:
    """Insert rows in transactions of a thousand, as an application would."""
    for start in range(first, first + count, 1000):
        await writer.execute(
            "insert into item select n, 0 from generate_series($1::int, $2::int) n",
            start,
            min(start + 1000, first + count) - 1,
        )


async def selected(writer: asyncpg.Connection, count: int) -> float:
    """Return the seconds of a bare SELECT of the newest changes, keys decoded."""
    began = time.perf_counter()
    async with writer.transaction():
        rows = [
            json.loads(row["key"])
            async for row in writer.cursor(
                "select id, xid, relation, operation, key, changed from rowsignal.change"
                " where id > (select max(id) from rowsignal.change) - $1 order by id",
                count,
                prefetch=1000,
            )
        ]
    assert len(rows) == count
    return time.perf_counter() - began


async def watched(engine: AsyncEngine, after: str, count: int) -> float:
    began, seen = time.perf_counter(), 0
    async with watch(engine, Item, after=after) as changes:
        async for _ in changes:
            seen += 1
            if seen == count:
                break
    return time.perf_counter() - began


async def chunk(reader: asyncio.StreamReader) -> bytes:
    """Read one chunk of an answer (RFC 9112, section 7.1): it may end within a frame."""
    size = int(await reader.readuntil(b"\r\n"), 16)
    assert size, "the stream has ended"
    return (await reader.readexactly(size + 2))[:-2]


async def streamed(port: int, after: str, count: int) -> float:
    """Return the seconds until all changes since a position have been read from a socket."""
    began, seen = time.perf_counter(), 0
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    writer.write(f"GET /changes/item?after={after} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    tail = b""
    while seen < count:
        tail += await chunk(reader)
        whole, _, tail = tail.rpartition(b"\n\n")
        assert b"event: reset" not in whole
        seen += (whole + b"\n").count(b"event: insert\n")
    writer.close()
    return time.perf_counter() - began


async def catch_up(server: EmbeddedPostgres, report: Report) -> None:
    engine = create_async_engine(server.url)
    writer = await asyncpg.connect(server.dsn)
    positions: dict[int, str] = {}
    async with ChangeLog(engine) as log, process("benchmarks.growth", "ours", server.url) as ours:
        first = 1
        for count, more in ((MANY, MANY - SOME), (SOME, SOME - FEW), (FEW, FEW)):
            positions[count] = await log.position()
            await insert_items(writer, first, more)
            first += more
        await writer.execute("vacuum analyze rowsignal.change")
        sse = {count: await streamed(ours.port, positions[count], count) for count in positions}
        direct = {count: await watched(engine, positions[count], count) for count in positions}
        bare = {count: await selected(writer, count) for count in positions}
    for name, seconds in (("SSE", sse), ("watch", direct), ("SELECT", bare)):
        report.figures[f"us a change, {name}"] = {
            str(count): round(taken / count * 1e6, 1) for count, taken in seconds.items()
        }
    report.ratio("sse_catch_up_over_select", sse[SOME] / bare[SOME], at_most=6)
    report.ratio("watch_catch_up_over_select", direct[SOME] / bare[SOME], at_most=3)
    growth = max((taken[MANY] / MANY) / (taken[FEW] / FEW) for taken in (sse, direct))
    report.ratio("catch_up_growth", growth, at_most=1.3)
    await writer.close()
    await Dispatcher.of(engine).listener.close()
    await engine.dispose()


@asynccontextmanager
async def waiting(server: EmbeddedPostgres, count: int) -> AsyncIterator[None]:
    """Wait for so many rows of one table, from when all are read and the table is armed."""
    engine = create_async_engine(server.url)
    waits = [asyncio.create_task(wait_for_row_change(engine, Item, n + 1)) for n in range(count)]
    dispatcher = Dispatcher.of(engine)
    while not (  # noqa: ASYNC110 -- looks from outside, without a hook that would cost the waits
        sum(wait.baseline is not None for rows in dispatcher.rows for wait in rows) == count
        and all(table.watch.mode == "armed" for table in dispatcher.tables.values())
    ):
        await asyncio.sleep(0.1)
    yield
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    await dispatcher.listener.close()
    await engine.dispose()


async def many_waits(server: EmbeddedPostgres, report: Report) -> None:
    """Measure how long waits take to be armed, and then, which takes longer, their memory."""
    seconds = {}
    for count in (FEW_WAITS, SOME_WAITS, WAITS):
        began = time.perf_counter()
        async with waiting(server, count):
            seconds[count] = time.perf_counter() - began
    report.figures["waits, seconds until armed"] = {
        str(count): round(taken, 1) for count, taken in seconds.items()
    }
    growth = (seconds[WAITS] / WAITS) / (seconds[FEW_WAITS] / FEW_WAITS)
    report.ratio("arming_growth", growth, at_most=1.3)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    async with waiting(server, WAITS):
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    report.ratio("waits_100000_kib", (after - before) / WAITS / 1024, at_most=6)


async def many_tables(server: EmbeddedPostgres, report: Report) -> None:
    """Wait for a row in each of a thousand tables, and count what the idle waits ask."""
    engine = create_async_engine(server.url)
    metadata = sa.MetaData()
    models = []
    for number in range(TABLES):
        columns = {
            "__tablename__": f"t{number}",
            "metadata": metadata,
            "id": mapped_column(sa.Integer, primary_key=True),
        }
        models.append(type(f"T{number}", (Base,), columns))
    writer = await asyncpg.connect(server.dsn)
    for number in range(TABLES):
        await writer.execute(f"create table t{number} (id int primary key)")
        await writer.execute(f"insert into t{number} values (1)")
    await install_triggers(engine, [model.__table__ for model in models])
    waits = [asyncio.create_task(wait_for_row_change(engine, model, 1)) for model in models]
    dispatcher = Dispatcher.of(engine)
    while not (  # noqa: ASYNC110 -- as above
        len(dispatcher.tables) == TABLES
        and all(table.watch.mode == "armed" for table in dispatcher.tables.values())
    ):
        await asyncio.sleep(0.2)
    await asyncio.sleep(12)  # an idle session reports what it counted only every ten seconds
    before = await queries(writer)
    await asyncio.sleep(IDLE_SECONDS)
    asked = await queries(writer) - before - 2
    report.ratio("idle_queries_1000_tables", max(asked, 0) / IDLE_SECONDS, at_most=2)
    for task in waits:
        task.cancel()
    await asyncio.gather(*waits, return_exceptions=True)
    await dispatcher.listener.close()
    await writer.close()
    await engine.dispose()


async def run() -> dict[str, object]:
    """Measure each kind of growth on a server of its own."""
    report = Report("growth")
    with EmbeddedPostgres(settings={"autovacuum": "off"}) as server:
        engine = create_async_engine(server.url)
        async with engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await install_triggers(engine, [Item], log=True)
        await catch_up(server, report)
        await install_triggers(engine, [Item])
        await engine.dispose()
        await many_waits(server, report)
    locks = {"autovacuum": "off", "max_locks_per_transaction": "256"}
    with EmbeddedPostgres(settings=locks) as server:
        await many_tables(server, report)
    return report.as_dict()


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    serve(our_app(sys.argv[2]))
