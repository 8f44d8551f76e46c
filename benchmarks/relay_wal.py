"""Capture from the WAL: what it costs writers, and how soon a change is at a gateway's reader.

Writers are eight of pgbench, in turns on a table without capture and no relay, and on a table that
is published while a relay reads its changes and publishes them. The relay runs at a lower priority
than the server's processes, whose cores it takes here; the rate at the same priority is a figure
without a target. Latency is that of the same table in two databases of one server, one with the
trigger log and one with a publication, in turns.
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

from benchmarks.pgbench import turn
from benchmarks.processes import process
from benchmarks.relay import Frames, latencies, nats_server
from benchmarks.report import Report, spread
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.relay import install_wal_capture
from rowsignal.triggers import install_triggers

ROWS = 10_000
CLIENTS = 8
NICENESS = 10  # of the relay, which is to take what writers leave, as on a machine of its own
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
async def relay(nats_url: str, url: str, *options: str, niceness: int = 0) -> AsyncIterator[None]:
    """Run a relay as a process of its own; wait until it is at work."""
    command = Path(sys.executable).with_name("rowsignal")
    given = ("relay", "--nats", nats_url, "--url", url, *options)
    child = await asyncio.create_subprocess_exec(
        "nice", "-n", str(niceness), str(command), *given, stderr=asyncio.subprocess.PIPE
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
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        sql = await asyncpg.connect(server.dsn)
        await sql.execute(MAKE.format("plain") + MAKE.format("captured"))
        await install_wal_capture(engine, ["public.captured"])
        rates: dict[str, list[float]] = {"none": [], "wal": [], "wal_same_priority": []}
        async with nats_server() as url:
            for _ in range(TURNS):
                none = await turn(server, UPDATE.format("plain"), CLIENTS, SECONDS)
                rates["none"].append(none.tps)
                for name, niceness in (("wal", NICENESS), ("wal_same_priority", 0)):
                    async with relay(url, server.url, "--capture", "wal", niceness=niceness):
                        wal = await turn(server, UPDATE.format("captured"), CLIENTS, SECONDS)
                        await _level(sql)
                    rates[name].append(wal.tps)
        await sql.close()
        await engine.dispose()
    report.figures |= {f"{name}_tps_8": round(median(it)) for name, it in rates.items()}
    pairs = zip(rates["wal"], rates["none"], strict=True)
    report.ratio("wal_tps_8", median(wal / none for wal, none in pairs), at_least=0.88)


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
