"""How fast the change log is read, beside a bare SELECT of the same rows by a bigint key.

The bare reader asks `WHERE id > $1 ORDER BY id LIMIT n` of a copy with a primary key on `id`, and
decodes the key of each row, without which it would not know which row has changed. It has no
positions, and would lose what commits late. Both run in turns; medians are compared.
"""

import json
import re
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.report import Report
from rowsignal.change_log import Batch, ChangeLog
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.postgres import schema

DRAINED = 200_000
CAUGHT_UP = 1_000_000
ROUNDS = 7
FILL = """
insert into rowsignal.change (relation, operation, key, changed)
select 'orders'::regclass, 'u', jsonb_build_object('id', n), '{status}'
from generate_series(1, $1::int) as n
"""
BARE = """
select id, xid, captured_at, relation, operation, key, changed, old_row, new_row
from bare where id > $1 order by id limit 5000
"""


async def fill(connection: asyncpg.Connection, count: int) -> None:
    """Log changes, a thousand in a transaction."""
    for _ in range(count // 1000):
        await connection.execute(FILL, 1000)


async def drain_bare(connection: asyncpg.Connection, *, is_decoded: bool = True) -> int:
    """Read all rows as one would without rowsignal."""
    count = last = 0
    while rows := await connection.fetch(BARE, last):
        keys = [json.loads(row["key"]) for row in rows] if is_decoded else rows
        count += len(keys)
        last = rows[-1]["id"]
    return count


async def drain_log(log: ChangeLog, start: str) -> int:
    """Read all changes."""
    count = 0
    async for batch in log.pages(start):
        assert isinstance(batch, Batch)
        count += len(batch.changes)
    return count


async def rate(work: Callable[[], Awaitable[int]], expected: int) -> float:
    """Return rows a second."""
    began = time.perf_counter()
    assert await work() == expected
    return expected / (time.perf_counter() - began)


def resident_mib() -> float:
    """Return the memory of this process; 0 where the system does not say."""
    status = Path("/proc/self/status")
    found = re.search(r"VmRSS:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return int(found[1]) / 1024 if found else 0.0


async def peak_of_catch_up(log: ChangeLog, start: str) -> tuple[float, float]:
    """Return by how many MiB catching up makes this process grow, and in how many seconds."""
    before, peak, count, began = resident_mib(), 0.0, 0, time.perf_counter()
    async for batch in log.pages(start):
        assert isinstance(batch, Batch)
        count += len(batch.changes)
        peak = max(peak, resident_mib())
    assert count == CAUGHT_UP
    return max(0.0, peak - before), time.perf_counter() - began


async def measure(log: ChangeLog, connection: asyncpg.Connection, report: Report) -> None:
    """Catch up with a huge gap, while memory is fresh; then compare the drains."""
    start = await log.position()
    await fill(connection, CAUGHT_UP)
    peak, seconds = await peak_of_catch_up(log, start)
    report.figures["catch_up_seconds"] = round(seconds, 1)
    report.ratio("catch_up_peak_mib", peak, at_most=64)

    start = await log.position()
    newest = await connection.fetchval("select max(id) from rowsignal.change")
    await fill(connection, DRAINED)
    copy = f"create table bare as select * from rowsignal.change where id > {newest}"
    await connection.execute(copy)
    await connection.execute("alter table bare add primary key (id)")
    await connection.execute("analyze")
    rates: dict[str, list[float]] = {"bare": [], "undecoded": [], "log": []}
    for _ in range(ROUNDS):
        rates["bare"].append(await rate(lambda: drain_bare(connection), DRAINED))
        rates["undecoded"].append(
            await rate(lambda: drain_bare(connection, is_decoded=False), DRAINED)
        )
        rates["log"].append(await rate(lambda: drain_log(log, start), DRAINED))
    middle = {name: median(values) for name, values in rates.items()}
    report.figures |= {f"{name}_rows_per_s": round(value) for name, value in middle.items()}
    report.figures["drain_over_undecoded_select"] = round(middle["log"] / middle["undecoded"], 3)
    report.ratio("drain_over_select", middle["log"] / middle["bare"], at_least=0.7)


async def run() -> dict[str, object]:
    """Run the benchmark on a server of its own."""
    report = Report("log_throughput")
    async with EmbeddedPostgres(settings={"max_wal_size": "4GB"}) as server:
        engine = create_async_engine(server.url)
        async with engine.begin() as own:
            await own.run_sync(schema.apply)
        connection = await asyncpg.connect(server.dsn)
        await connection.execute("create table orders (id integer primary key)")
        async with ChangeLog(engine) as log:
            await measure(log, connection, report)
        await connection.close()
        await engine.dispose()
    return report.as_dict()
