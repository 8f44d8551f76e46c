"""Capture from the WAL: what it costs writers, and how soon a change is at a gateway's reader.

Writers are eight of pgbench on a server that flushes each commit, in turns on a table without
capture and no relay, and on a table that is published while a relay reads its changes and publishes
them. Each flush takes a millisecond, and then as long as this disk takes: eight writers alone then
keep two cores busy, and whatever a relay does is taken from them. What the backends spend on a
transaction does not depend on that. Latency is that of the same table in two databases of one
server, one with the trigger log and one with a publication, in turns.
"""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from statistics import median

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.pgbench import FLUSH, Turn, durable_server, slow_flushes, turn
from benchmarks.processes import process
from benchmarks.relay import Frames, latencies, nats_server
from benchmarks.report import Report, spread
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.relay import install_wal_capture
from rowsignal.triggers import install_triggers

ROWS = 10_000
CLIENTS = 8
TURNS = 4
SECONDS = 3
LATENCY_ROUNDS = 6
UPDATE = f"\\set id random(1, {ROWS})\nupdate {{}} set v = v + 1 where id = :id;\n"
MAKE = (
    "create table {0} (id integer primary key, v integer, note text);"
    f"insert into {{0}} select n, 0, md5(n::text) from generate_series(1, {ROWS}) n;"
    "alter table {0} replica identity full;"
)
LAG = "select pg_current_wal_lsn() - confirmed_flush_lsn from pg_replication_slots"
LEVEL = 2**20


@contextlib.asynccontextmanager
async def relay(nats_url: str, url: str, *options: str) -> AsyncIterator[None]:
    """Run a relay as a process of its own; wait until it is at work."""
    command = Path(sys.executable).with_name("rowsignal")
    given = ("relay", "--nats", nats_url, "--url", url, *options)
    child = await asyncio.create_subprocess_exec(
        str(command), *given, stderr=asyncio.subprocess.PIPE
    )
    assert child.stderr is not None
    while b"relaying" not in (line := await child.stderr.readline()):
        assert line, "the relay has ended"
    draining = asyncio.create_task(child.stderr.read())
    try:
        yield
    finally:
        child.kill()
        await child.wait()
        await draining


async def writers(report: Report) -> None:
    """Compare the rate of writers with and without capture, in turns."""
    with durable_server() as server:
        engine = create_async_engine(server.url)
        sql = await asyncpg.connect(server.dsn)
        await sql.execute(MAKE.format("plain") + MAKE.format("captured"))
        await install_wal_capture(engine, ["public.captured"])
        async with nats_server() as url:
            for name, microseconds in (("slow_flush", FLUSH), ("this_disk", 0)):
                await slow_flushes(server, microseconds)
                rounds = [await _round(server, sql, url) for _ in range(TURNS)]
                _tell(report, name, rounds)
        await sql.close()
        await engine.dispose()
    report.ratio("wal_tps_8", report.figures["wal_tps_8_over_none, slow_flush"], at_least=0.88)


async def _round(server: EmbeddedPostgres, sql: asyncpg.Connection, nats: str) -> tuple[Turn, Turn]:
    """Let writers have a turn without capture, and one beside a relay that is then level."""
    none = await turn(server, UPDATE.format("plain"), CLIENTS, SECONDS)
    async with relay(nats, server.url, "--capture", "wal"):
        wal = await turn(server, UPDATE.format("captured"), CLIENTS, SECONDS)
        await _level(sql)
    while await sql.fetchval("select count(*) from pg_stat_replication"):  # noqa: ASYNC110 -- asks
        await asyncio.sleep(0.05)  # its time would count for the next turn
    return none, wal


def _tell(report: Report, name: str, rounds: list[tuple[Turn, Turn]]) -> None:
    for kind, turns in zip(("none", "wal"), zip(*rounds, strict=True), strict=True):
        report.figures[f"{kind}_tps_8, {name}"] = round(median(it.tps for it in turns))
    over = median(wal.tps / none.tps for none, wal in rounds)
    report.figures[f"wal_tps_8_over_none, {name}"] = round(over, 3)
    cpu = median(wal.cpu / none.cpu for none, wal in rounds)
    report.figures[f"wal_cpu_over_none, {name}"] = round(cpu, 3)


async def _level(sql: asyncpg.Connection) -> None:
    """Wait until the relay has published all that was written."""
    await sql.execute("select pg_logical_emit_message(false, 'rowsignal', '')")
    while await sql.fetchval(LAG) > LEVEL:
        await asyncio.sleep(0.2)
        await sql.execute("select pg_logical_emit_message(false, 'rowsignal', '')")


async def latency(report: Report) -> None:
    """Compare the way through the WAL with that through the trigger log, in turns."""
    found: dict[str, list[float]] = {"log": [], "wal": []}
    async with contextlib.AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedPostgres())
        url = await stack.enter_async_context(nats_server())
        admin = await asyncpg.connect(server.dsn)
        ways = {}
        for name in found:
            await admin.execute(f"create database by_{name}")
            sql = await asyncpg.connect(server.dsn_of(f"by_{name}"))
            stack.push_async_callback(sql.close)
            await sql.execute(MAKE.format("ticks"))
            await _capture(name, server.url_of(f"by_{name}"))
            relaying = relay(url, server.url_of(f"by_{name}"), "--capture", name)
            await stack.enter_async_context(relaying)
            address = f"{url}|by_{name}"
            peer = process("benchmarks.relay_peer", "gateway", address)
            ways[name] = sql, (await stack.enter_async_context(peer)).port
        for _ in range(LATENCY_ROUNDS):
            for name, (sql, port) in ways.items():
                frames = await Frames.open(port)
                found[name] += await latencies(sql, frames)
                frames.close()
        await admin.close()
    report.figures |= {f"{name}_capture_latency": spread(it) for name, it in found.items()}
    ratio = median(found["wal"]) / median(found["log"])
    report.ratio("wal_latency_over_log", ratio, at_most=1.0)


async def _capture(name: str, url: str) -> None:
    engine = create_async_engine(url)
    if name == "log":
        await install_triggers(engine, "public.ticks", log=True, row_values=True)
    else:
        await install_wal_capture(engine, ["public.ticks"])
    await engine.dispose()


async def measure(report: Report) -> None:
    """Measure both."""
    await writers(report)
    await latency(report)


if __name__ == "__main__":
    alone = Report("relay_wal")
    asyncio.run(measure(alone))
    print(json.dumps(alone.as_dict()))
