"""How fast changes are handled, and how soon another worker takes over.

The bare loop has the same changes in a list and runs the same two statements for each, in one
transaction: the handler's insert, and an UPDATE that stores how far it has come. It reads nothing,
and knows neither retries nor other workers. Both run in turns; medians are compared. A worker that
is killed has renewed its lease up to a third of it ago; the time counts from the kill to the first
change that its successor handles.
"""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.report import Report
from rowsignal.changes import Change
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.handlers import ChangeHandlers, drop_consumer
from rowsignal.triggers import install_triggers

CHANGES = 1500
ROUNDS = 5
LEASE = 2.0
KILLS = 3


class Base(DeclarativeBase):
    pass


class Job(Base):
    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)


class Done(Base):
    __tablename__ = "done"
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int]
    done_at: Mapped[float]


class Place(Base):
    __tablename__ = "place"
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]


def effect(job_id: int) -> sa.Insert:
    """Return the statement of the handler."""
    return sa.insert(Done).values(job_id=job_id, done_at=time.time())


async def bare(engine: AsyncEngine, jobs: list[int]) -> float:
    """Handle jobs as one would by hand; return the rate."""
    began = time.perf_counter()
    async with engine.connect() as connection:
        for job in jobs:
            async with AsyncSession(connection) as session, session.begin():
                await session.execute(effect(job))
                move = sa.update(Place).where(Place.name == "bare").values(position=job)
                await session.execute(move)
    return len(jobs) / (time.perf_counter() - began)


async def handled(engine: AsyncEngine, count: int) -> float:
    """Handle all jobs by a consumer; return the rate, from the first to the last."""
    changes, times = ChangeHandlers(engine), list[float]()
    is_over = asyncio.Event()

    @changes.on(Job, name="bench", start="beginning")
    async def handler(session: AsyncSession, change: Change) -> None:
        assert change.key is not None
        await session.execute(effect(change.key["id"]))
        times.append(time.perf_counter())
        if len(times) == count:
            is_over.set()

    async with changes:
        await is_over.wait()
    await drop_consumer(engine, "bench")
    return (count - 1) / (times[-1] - times[0])


async def work(url: str) -> None:
    """Be a worker until killed."""
    engine = create_async_engine(url)
    changes = ChangeHandlers(engine, lease=LEASE)

    @changes.on(Job, name="watch")
    async def handler(session: AsyncSession, change: Change) -> None:
        assert change.key is not None
        await session.execute(effect(change.key["id"]))

    await changes.run()


@asynccontextmanager
async def worker(url: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start a worker process."""
    program = (
        f"import asyncio; from benchmarks import handlers; asyncio.run(handlers.work({url!r}))"
    )
    root = Path(__file__).parent.parent
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=root)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def takeover(engine: AsyncEngine, url: str, first: int) -> float:
    """Return the seconds from the kill of the worker at work to the successor's first change."""
    async with worker(url) as one, worker(url) as two:
        label = await until_shared(engine)
        victim = one if label.endswith(f":{one.pid}") else two
        os.kill(victim.pid, signal.SIGKILL)
        killed = time.time()
        async with engine.begin() as connection:
            await connection.execute(sa.insert(Job).values(id=first))
        query = sa.select(Done.done_at).where(Done.job_id == first)
        while True:
            async with engine.connect() as connection:
                if (done_at := await connection.scalar(query)) is not None:
                    return float(done_at) - killed
            await asyncio.sleep(0.01)


async def until_shared(engine: AsyncEngine) -> str:
    """Return which worker is at work, when another one stands by."""
    query = (
        "select w.label, count(*) over () as workers"
        " from rowsignal.worker as w left join rowsignal.consumer_partition as p on p.holder = w.id"
        " where w.consumer = 'watch' and w.alive_until > clock_timestamp()"
        " order by p.holder is null"
    )
    while True:
        async with engine.connect() as connection:
            row = (await connection.execute(sa.text(query))).first()
        if row is not None and row.workers == 2:
            return str(row.label)
        await asyncio.sleep(0.02)


async def measure(engine: AsyncEngine, url: str, report: Report) -> None:
    """Compare the rates, then kill workers."""
    jobs = list(range(CHANGES))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(sa.insert(Place).values(name="bare", position=0))
    await install_triggers(engine, Job, log=True)
    async with engine.begin() as connection:
        await connection.execute(sa.insert(Job), [{"id": job} for job in jobs])
    rates: dict[str, list[float]] = {"bare": [], "handled": []}
    for _ in range(ROUNDS):
        rates["bare"].append(await bare(engine, jobs))
        rates["handled"].append(await handled(engine, CHANGES))
    middle = {name: median(values) for name, values in rates.items()}
    report.figures |= {f"{name}_per_s": round(value) for name, value in middle.items()}
    report.ratio("handled_over_bare", middle["handled"] / middle["bare"], at_least=0.8)
    seconds = [await takeover(engine, url, CHANGES + kill) for kill in range(KILLS)]
    report.figures["takeover_seconds"] = json.dumps([round(value, 2) for value in seconds])
    report.ratio("takeover_over_lease", max(seconds) / LEASE, at_most=2)


async def run() -> dict[str, object]:
    """Run the benchmark on a server of its own."""
    report = Report("handlers")
    async with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        await measure(engine, server.url, report)
        await engine.dispose()
    return report.as_dict()
