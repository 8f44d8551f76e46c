"""One turn of pgbench: transactions a second, and what each cost the server's processors."""

import asyncio
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from rowsignal.embedded import EmbeddedPostgres

FLUSH = 1000  # microseconds: what a disk takes that is not as fast as this one


@dataclass(frozen=True)
class Turn:
    """The rate of a turn, and the processor time that the backends took for a transaction."""

    tps: float
    cpu: float  # seconds, user and system


@contextmanager
def durable_server() -> Iterator[EmbeddedPostgres]:
    """Run a server that flushes each commit to disk, as one in production does."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # root's servers run as another user, who has to get there
        with EmbeddedPostgres(data_dir=Path(folder) / "data") as server:
            yield server


async def slow_flushes(server: EmbeddedPostgres, microseconds: int) -> None:
    """Let whoever flushes commits wait before, as long as a slower disk takes."""
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("alter system set commit_siblings = 0")
    await connection.execute(f"alter system set commit_delay = {microseconds}")
    await connection.execute("select pg_reload_conf()")
    await connection.close()


async def rate(server: EmbeddedPostgres, script: str, clients: int, seconds: int) -> float:
    """Let `clients` run a script over and over for some seconds; return transactions a second."""
    return number(r"tps = ([\d.]+)", await pgbench(server, script, clients, seconds))


async def turn(server: EmbeddedPostgres, script: str, clients: int, seconds: int) -> Turn:
    """Let `clients` run a script over and over for some seconds, without other connections.

    The processor time is that of the backends, which the postmaster has collected when they have
    ended: unlike the rate it does not depend on what else the machine is doing. A backend that
    has not ended when pgbench does would count for the next turn, so the turn lasts until then.
    """
    others, before = children(server), collected(server)
    text = await pgbench(server, script, clients, seconds)
    await asyncio.to_thread(wait_until_collected, server, others)
    return Turn(number(r"tps = ([\d.]+)", text), (collected(server) - before) / number(DONE, text))


async def pgbench(server: EmbeddedPostgres, script: str, clients: int, seconds: int) -> str:
    """Run pgbench; return its report."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script)
        file.flush()
        process = await asyncio.create_subprocess_exec(
            str(server.bin_dir / "pgbench"),
            *("-n", "-M", "prepared", "-c", str(clients), "-j", str(min(clients, 2))),
            *("-T", str(seconds), "-f", file.name, server.dsn),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors.decode())
    return output.decode()


DONE = r"number of transactions actually processed: (\d+)"


def number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"pgbench did not say {pattern}: {text}")
    return float(found[1])


def collected(server: EmbeddedPostgres) -> float:
    """Return the processor seconds of the postmaster's children that have ended (proc(5), stat)."""
    fields = Path(f"/proc/{postmaster(server)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def wait_until_collected(server: EmbeddedPostgres, others: set[str]) -> None:
    """Wait until the postmaster has collected all of its children but those that were there."""
    while children(server) - others:
        time.sleep(0.01)


def children(server: EmbeddedPostgres) -> set[str]:
    """Return the processes that the postmaster has begun and not yet collected."""
    pid = postmaster(server)
    return set(Path(f"/proc/{pid}/task/{pid}/children").read_text().split())


def postmaster(server: EmbeddedPostgres) -> str:
    return (Path(server.data_dir) / "postmaster.pid").read_text().split()[0]
