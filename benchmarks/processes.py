"""Servers that are measured from outside: each is a process of its own, on uvicorn."""

import asyncio
import contextlib
import gc
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import psutil
import uvicorn


def serve(app: Any) -> None:
    """Serve an application on a free port, which is printed first."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        gc.collect()
        gc.freeze()  # as `rowsignal serve` does
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()
        config = uvicorn.Config(app, log_level="warning", access_log=False, lifespan="auto")
        asyncio.run(uvicorn.Server(config).serve([listener]))


class Peer:
    """A server process and how to reach it."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self.process = process
        self.port = port
        self.usage = psutil.Process(process.pid)

    def cpu(self) -> float:
        """Return the CPU seconds used so far."""
        times = self.usage.cpu_times()
        return times.user + times.system


@contextlib.asynccontextmanager
async def process(module: str, *arguments: str) -> AsyncIterator[Peer]:
    """Run a module that begins by printing the port it serves."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        yield Peer(child, int(await child.stdout.readline()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
