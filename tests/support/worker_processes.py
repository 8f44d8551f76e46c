"""Worker processes that tests stop, kill and continue."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncEngine

PROGRAM = Path(__file__).with_name("handler_worker.py")
PATIENCE = 60.0


@dataclass
class WorkerProcess:
    """One process that handles changes."""

    process: asyncio.subprocess.Process

    async def until(self, word: str) -> None:
        """Return when the process has printed a line."""
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            while line := (await self.process.stdout.readline()).decode().strip():
                if line == word:
                    return
        raise AssertionError(f"the worker ended before it said {word!r}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to this process."""
        os.kill(self.process.pid, number)

    def resume(self) -> None:
        """Continue a stopped process, and let its handler return."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.signal(signal.SIGCONT)

    async def kill(self) -> None:
        """Kill the process without a warning."""
        self.process.kill()
        await self.process.wait()

    async def end(self) -> None:
        """End the process in order."""
        self.process.terminate()
        async with asyncio.timeout(PATIENCE):
            await self.process.wait()


@asynccontextmanager
async def worker_process(
    engine: AsyncEngine, *, lease: float = 1.0, partitions: int = 1, stall: int | None = None
) -> AsyncIterator[WorkerProcess]:
    """Start a worker; it is at work when the block begins."""
    url = engine.url.render_as_string(hide_password=False)
    options = json.dumps({"lease": lease, "partitions": partitions, "stall": stall})
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), url, options, stdin=-1, stdout=-1
    )
    worker = WorkerProcess(process)
    try:
        await worker.until("ready")
        yield worker
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
