"""From commit to resolved wait, against a bare listener, and against polling each 0.5 s.

The floor is the least that anybody could write: an asyncpg connection that listens, whose
callback wakes one `session.get` on a fresh session.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from statistics import median

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.report import Report, spread
from rowsignal.dispatcher import Dispatcher
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.triggers import install_triggers
from rowsignal.waiting import wait_for_row_change

ROUNDS = 600
POLLED_ROUNDS = 12
PACE = 0.03  # below the rate at which a table is polled instead of armed
FLOOR_CHANNEL = "floor"


class Base(DeclarativeBase):
    pass


class Watched(Base):
    __tablename__ = "watched"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(default=0)


class Floor(Base):
    __tablename__ = "floor"

    id: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[int] = mapped_column(default=0)


Measure = Callable[[], Awaitable[float]]


@asynccontextmanager
async def prepared(server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(server.url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with async_sessionmaker(engine).begin() as session:
        session.add_all([Watched(id=1, status=0), Floor(id=1, status=0)])
    await install_triggers(engine, [Watched])
    yield engine
    await Dispatcher.of(engine).listener.close()
    await engine.dispose()


async def update(writer: asyncpg.Connection, table: str) -> float:
    """Commit one change and return when the commit had come back."""
    if table == "floor":
        async with writer.transaction():
            await writer.execute("update floor set status = status + 1")
            await writer.execute("select pg_notify('floor', '1')")
    else:
        await writer.execute("update watched set status = status + 1")
    return time.perf_counter()


async def ours(engine: AsyncEngine, writer: asyncpg.Connection, interval: float) -> float:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session:
        row = await session.get_one(Watched, 1)  # what a session does not hold, it has not seen
        await session.commit()
        wait = wait_for_row_change(session, Watched, 1, interval=interval, timeout=10)
        waiting = asyncio.create_task(wait)
        await asyncio.sleep(PACE)
        committed = await update(writer, "watched")
        assert await waiting is row
        return time.perf_counter() - committed


async def until(engine: AsyncEngine, writer: asyncpg.Connection) -> float:
    """Return the seconds from a commit to the end of a wait for a condition on the row."""
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    async with sessions() as session:
        row = await session.get_one(Watched, 1)
        await session.commit()
        wanted = Watched.status > row.status
        wait = wait_for_row_change(session, Watched, 1, until=wanted, interval=0.5, timeout=10)
        waiting = asyncio.create_task(wait)
        await asyncio.sleep(PACE)
        committed = await update(writer, "watched")
        assert await waiting is row
        return time.perf_counter() - committed


async def floor(
    engine: AsyncEngine, writer: asyncpg.Connection, listener: asyncpg.Connection
) -> float:
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    woken = asyncio.Event()

    def wake(*_: object) -> None:
        woken.set()

    async def wait() -> None:
        await woken.wait()
        async with sessions() as session:
            await session.get_one(Floor, 1)

    await listener.add_listener(FLOOR_CHANNEL, wake)
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(PACE)
    committed = await update(writer, "floor")
    await waiting
    taken = time.perf_counter() - committed
    await listener.remove_listener(FLOOR_CHANNEL, wake)
    return taken


async def run() -> dict[str, object]:
    """Measure both sides in turn."""
    report = Report("wait_latency")
    with EmbeddedPostgres() as server:
        writer, listener = await asyncpg.connect(server.dsn), await asyncpg.connect(server.dsn)
        async with prepared(server) as engine:
            mine: list[float] = []
            bare: list[float] = []
            conditional: list[float] = []
            for round_number in range(ROUNDS + 20):
                taken = (
                    await ours(engine, writer, 0.5),
                    await floor(engine, writer, listener),
                    await until(engine, writer),
                )
                if round_number >= 20:  # the first ones warm caches and plans
                    mine.append(taken[0])
                    bare.append(taken[1])
                    conditional.append(taken[2])
            modes = {t.watch.mode for t in Dispatcher.of(engine).tables.values()}
            await writer.execute("alter table watched disable trigger all")
            await Dispatcher.of(engine).listener.close()
            polled = [await ours(engine, writer, 0.5) for _ in range(POLLED_ROUNDS)]
        await writer.close()
        await listener.close()
    report.figures = {
        "wait": spread(mine),
        "bare listener": spread(bare),
        "wait with until=": spread(conditional),
        "polling each 0.5 s": {"p50_ms": round(median(polled) * 1000, 1)},
        "mode": sorted(modes),
        "rounds": ROUNDS,
    }
    ours_spread, bare_spread = spread(mine), spread(bare)
    report.ratio("p50_over_floor", ours_spread["p50_ms"] / bare_spread["p50_ms"], at_most=1.5)
    report.ratio("p99_over_floor", ours_spread["p99_ms"] / bare_spread["p99_ms"], at_most=3)
    report.ratio("until_over_without", median(conditional) / median(mine), at_most=1.1)
    report.ratio("sooner_than_polling", median(polled) / median(mine), at_least=100)
    return report.as_dict()
