"""Ten thousand waits in one process: connections, idle queries, memory, and the rate of resolving.

The peer is 10,000 bare `session.get` calls, each on a fresh session of the same pool.
"""

import asyncio
import gc
import time
import tracemalloc
from statistics import median

import asyncpg
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.report import Report
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change

WAITS = 10_000
POOL = 5
ROUNDS = 2
IDLE_SECONDS = 20
OWN_TRANSACTIONS = 2  # of each reading of the statistics
STATISTICS_DELAY = 12  # an idle session reports what it counted only every ten seconds


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str] = mapped_column(default="queued")
    attempts: Mapped[int] = mapped_column(default=0)


async def prepare(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Job), [{"id": n} for n in range(1, WAITS + 1)])
    await install_triggers(engine, Base)


async def begin_waits(engine: AsyncEngine, count: int) -> list[asyncio.Task[Job]]:
    """Start waits and return when each has seen its row and the table is armed."""
    sessions = async_sessionmaker(engine)
    waits = [
        asyncio.create_task(wait_for_row_change(sessions, Job, n)) for n in range(1, count + 1)
    ]
    dispatcher = Dispatcher.of(engine)
    while not (  # noqa: ASYNC110 -- looks from outside, without a hook that would cost the waits
        sum(wait.baseline is not None for rows in dispatcher.rows for wait in rows) == count
        and all(table.watch.mode == "armed" for table in dispatcher.tables.values())
    ):
        await asyncio.sleep(0.05)
    return waits


async def resolve(writer: asyncpg.Connection, waits: list[asyncio.Task[Job]]) -> float:
    """Change all rows in one statement; return the seconds until every wait has returned."""
    began = time.perf_counter()
    await writer.execute("update jobs set attempts = attempts + 1 where id <= $1", len(waits))
    await asyncio.gather(*waits)
    return time.perf_counter() - began


async def get_all(engine: AsyncEngine, count: int) -> float:
    """Return the seconds that as many bare `session.get` calls take, all at once."""
    sessions = async_sessionmaker(engine)

    async def get(number: int) -> None:
        async with sessions() as session:
            await session.get_one(Job, number)

    began = time.perf_counter()
    await asyncio.gather(*(get(number) for number in range(1, count + 1)))
    return time.perf_counter() - began


async def queries(writer: asyncpg.Connection) -> int:
    """Return how many transactions the database has seen, by its own count."""
    await writer.execute("select pg_stat_clear_snapshot()")
    return int(
        await writer.fetchval(
            "select xact_commit + xact_rollback from pg_stat_database"
            " where datname = current_database()"
        )
    )


async def connections(writer: asyncpg.Connection) -> int:
    return int(
        await writer.fetchval(
            "select count(*) from pg_stat_activity where datname = current_database()"
            " and backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
    )


async def memory_of_waits(engine: AsyncEngine, writer: asyncpg.Connection) -> float:
    """Return KiB per wait, the task that calls it included."""
    warm = await begin_waits(engine, 10)
    await resolve(writer, warm)
    gc.collect()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    waits = await begin_waits(engine, WAITS)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await resolve(writer, waits)
    return (after - before) / WAITS / 1024


async def run() -> dict[str, object]:
    """Measure; resolving and getting take turns."""
    report = Report("many_waits")
    with EmbeddedPostgres(settings={"autovacuum": "off"}) as server:  # its work would count
        engine = create_async_engine(server.url, pool_size=POOL, max_overflow=0, pool_timeout=300)
        await prepare(engine)
        writer = await asyncpg.connect(server.dsn)
        kib = await memory_of_waits(engine, writer)
        waited: dict[int, list[float]] = {100: [], 1_000: [], WAITS: []}
        got: list[float] = []
        for _ in range(ROUNDS):
            for count, seconds in waited.items():
                seconds.append(await resolve(writer, await begin_waits(engine, count)))
            got.append(await get_all(engine, WAITS))
        await engine.dispose()
        waits = await begin_waits(engine, WAITS)
        beside = await connections(writer)
        await asyncio.sleep(STATISTICS_DELAY)
        before = await queries(writer)
        await asyncio.sleep(IDLE_SECONDS)
        seen = await queries(writer) - before - OWN_TRANSACTIONS
        idle = max(0, seen) / IDLE_SECONDS
        await resolve(writer, waits)
        await Dispatcher.of(engine).listener.close()
        await engine.dispose()
        await writer.close()
    rates = {count: count / median(seconds) for count, seconds in waited.items()}
    report.figures = {
        "resolved per second": {str(count): round(rate) for count, rate in rates.items()},
        "session.get per second": round(WAITS / median(got)),
        "waits": WAITS,
        "pool_size": POOL,
        "idle seconds": IDLE_SECONDS,
    }
    report.ratio("connections_beside_pool", beside, at_most=2)
    report.ratio("idle_queries_per_second", idle, at_most=0.5)
    report.ratio("kib_per_wait", kib, at_most=6)
    report.ratio("resolve_rate_over_get", rates[WAITS] / (WAITS / median(got)), at_least=0.5)
    report.ratio("rate_of_10000_over_1000", rates[WAITS] / rates[1_000], at_least=0.5)
    return report.as_dict()
