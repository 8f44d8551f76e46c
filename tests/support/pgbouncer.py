"""A real PgBouncer, in transaction mode unless told otherwise, in front of a server."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port
from rowsignal.postgres.connections import suit_pooler

POOL_SIZE = 20
CONFIGURATION = """
[databases]
* = host={socket_dir} port={server_port} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {pool_size}
server_round_robin = 1
max_client_conn = 200
ignore_startup_parameters = extra_float_digits
server_check_query =
"""


def required(what: str) -> bool:
    """Tell whether a missing program fails the run instead of skipping a test."""
    return what in os.environ.get("ROWSIGNAL_REQUIRE", "").replace(",", " ").split()


def program() -> str:
    """Return PgBouncer's path; skip the test, or fail it where PgBouncer is required."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        message = "PgBouncer is not installed"
        pytest.fail(message) if required("pgbouncer") else pytest.skip(message)
    return found


@asynccontextmanager
async def pgbouncer(server: EmbeddedPostgres, *, mode: str = "transaction") -> AsyncIterator[int]:
    """Run PgBouncer for the length of a block; yield its port on 127.0.0.1."""
    command = program()
    place = parse_qs(urlsplit(server.dsn).query)
    socket_dir, server_port = place["host"][0], place.get("port", ["5432"])[0]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        port = free_port()
        file = Path(folder) / "pgbouncer.ini"
        file.write_text(
            CONFIGURATION.format(
                socket_dir=socket_dir,
                server_port=server_port,
                port=port,
                pool_size=POOL_SIZE,
                mode=mode,
            )
        )
        owner = Path(socket_dir).stat()
        identity = {"user": owner.st_uid, "group": owner.st_gid} if os.geteuid() == 0 else {}
        process = subprocess.Popen(  # noqa: ASYNC220 -- starts at once, and is waited for below
            [command, "-q", str(file)], cwd="/", stderr=subprocess.DEVNULL, **identity
        )
        try:
            await accepting(port)
            yield port
        finally:
            process.kill()
            process.wait()


@asynccontextmanager
async def pooled(port: int, like: AsyncEngine) -> AsyncIterator[AsyncEngine]:
    """Provide an engine that reaches the database of another one through PgBouncer."""
    address = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{like.url.database}"
    engine = create_async_engine(address)
    await suit_pooler(engine)
    yield engine
    await engine.dispose()


async def accepting(port: int) -> None:
    """Return when a port takes connections."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


async def settings_in_pool(port: int, database: str, *names: str) -> set[tuple[str, ...]]:
    """Return the values of settings that another client finds, on each connection of the pool."""
    wanted = ", ".join(f"current_setting('{name}')" for name in names)
    url = f"postgresql://postgres@127.0.0.1:{port}/{database}"
    found = set()
    async with AsyncExitStack() as stack:
        for _ in range(POOL_SIZE):  # each holds one connection of the pool until all have looked
            client = await asyncpg.connect(url, statement_cache_size=0)
            stack.push_async_callback(client.close)
            await stack.enter_async_context(client.transaction())
            found.add(tuple(await client.fetchrow(f"select {wanted}")))
    return found
