"""The processes of the demonstration: they are killed, started again, and end with it."""

import asyncio
import os
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Literal

from rowsignal.demo.scale.sse import is_ready
from rowsignal.embedded.ports import free_port
from rowsignal.embedded.watchdog import Watchdog
from rowsignal.exceptions import RowSignalError

HOST = "127.0.0.1"
PAUSE = 0.05
KEPT_LINES = 20
START_TIMEOUT = 60.0
OWN_VARIABLES = ("ROWSIGNAL_", "DATABASE_URL")

State = Literal["down", "starting", "up"]


class PartError(RowSignalError, RuntimeError):
    """A process of the demonstration ended by itself, or did not start in time."""


class ProcessGroup:
    """A group of processes that all end with this process, also after SIGKILL."""

    def __init__(self) -> None:
        self.folder = Path(mkdtemp(prefix="rowsignal-scale-"))
        self._watchdog = Watchdog(self.folder, goodbye="KILL")
        # A group lasts as long as a member: this one ends when nothing holds its input open.
        self._leader = subprocess.Popen(
            ["/bin/sh", "-c", "read -r _"], stdin=subprocess.PIPE, process_group=0
        )
        self._watchdog.guard(self._leader.pid)

    async def run(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> asyncio.subprocess.Process:
        """Start one more process of the group."""
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**_own_environment(), **environment},
            process_group=self._leader.pid,
        )

    def close(self) -> None:
        """End the group's first process, and remove the folder."""
        self._leader.kill()
        self._leader.communicate()
        self._watchdog.close()


class Part:
    """One process; `state` tells how it is, `kills` how often it was killed."""

    kind = "part"

    def __init__(self, name: str, group: ProcessGroup, command: Sequence[str]) -> None:
        self.name = name
        self.state: State = "down"
        self.kills = 0
        self._group = group
        self._command = command
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    @property
    def note(self) -> str:
        """A remark beside the state."""
        return ""

    async def start(self) -> None:
        """Start, and return when the process does its work."""
        self.state = "starting"
        self._process = await self._group.run(self._command, self._environment())
        self._reading = asyncio.create_task(self._read(self._process), name=f"demo {self.name}")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._until_up(self._process)
        except TimeoutError:
            raise self._failed(f"was not ready within {START_TIMEOUT:g} s") from None
        self.state = "up"

    async def _until_up(self, process: asyncio.subprocess.Process) -> None:
        while not await self._is_up():
            if process.returncode is not None:
                raise self._failed("has ended")
            await asyncio.sleep(PAUSE)

    async def kill(self) -> None:
        """Kill without a warning."""
        self.kills += 1
        await self.end()

    async def end(self) -> None:
        """End the process."""
        self.state = "down"
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        if self._reading is not None:
            await self._reading

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None  # noqa: S101 -- it is a pipe
        while line := await process.stdout.readline():
            text = line.decode("utf-8", "replace").rstrip()
            self._lines.append(text)
            self._notice(text)

    def _failed(self, what: str) -> PartError:
        return PartError("\n".join([f"The {self.name} {what}. It wrote:", *self._lines]))

    def _environment(self) -> Mapping[str, str]:
        return {}

    def _notice(self, line: str) -> None:
        """Take note of a line that the process has written."""

    async def _is_up(self) -> bool:
        return True


class NatsPart(Part):
    """A nats-server with JetStream, which keeps its store and its port."""

    kind = "nats"

    def __init__(self, group: ProcessGroup, program: Path) -> None:
        self.port = free_port()
        store = str(group.folder / "jetstream")
        options = ("-a", HOST, "-p", str(self.port), "-js", "-sd", store)
        super().__init__("nats-server", group, [str(program), *options])

    @property
    def url(self) -> str:
        """The address for clients."""
        return f"nats://{HOST}:{self.port}"

    async def _is_up(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True


class RelayPart(Part):
    """A relay; of two, one is at work and the other stands by."""

    kind = "relay"
    BEGINS = "relaying "
    ENDS = ("stands by", "cannot go on", "another relay has published")

    def __init__(self, name: str, group: ProcessGroup, nats: str, database_url: str) -> None:
        command = [*ROWSIGNAL, "relay", "--nats", nats, "--url", database_url]
        super().__init__(name, group, command)
        self.is_active = False

    @property
    def note(self) -> str:
        """Tell whether the relay is active."""
        return ("at work" if self.is_active else "stands by") if self.state == "up" else ""

    async def end(self) -> None:
        """End the process."""
        await super().end()
        self.is_active = False

    def _notice(self, line: str) -> None:
        if self.BEGINS in line:
            self.is_active = True
        elif any(words in line for words in self.ENDS):
            self.is_active = False


class GatewayPart(Part):
    """A gateway, with the page."""

    kind = "gateway"

    def __init__(
        self, name: str, group: ProcessGroup, *, nats: str, database_url: str, port: int
    ) -> None:
        self.port = port
        options = ["--nats", nats, "--url", database_url, "--host", HOST, "--port", str(port)]
        super().__init__(name, group, [*ROWSIGNAL, "gateway", *options])

    @property
    def note(self) -> str:
        """The address of the page."""
        return f"http://{HOST}:{self.port}/"

    def _environment(self) -> Mapping[str, str]:
        return {
            "ROWSIGNAL_TICKET_DIR": str(self._group.folder / "tickets"),
            "ROWSIGNAL_LOG_LEVEL": "warning",
            "ROWSIGNAL_HEARTBEAT": "1",
        }

    async def _is_up(self) -> bool:
        return await is_ready(HOST, self.port)


ROWSIGNAL = (sys.executable, "-m", "rowsignal")


@asynccontextmanager
async def process_group() -> AsyncIterator[ProcessGroup]:
    """Yield a group of processes that end with the block."""
    group = ProcessGroup()
    try:
        yield group
    finally:
        group.close()


def _own_environment() -> dict[str, str]:
    """Return the environment without what would configure the commands otherwise."""
    return {name: it for name, it in os.environ.items() if not name.startswith(OWN_VARIABLES)}
