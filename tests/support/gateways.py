"""Gateways: in the test's own event loop, each a real server, and as processes of their own."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.embedded.ports import free_port
from rowsignal.relay import JetStreamSource
from rowsignal.sse import Limits, create_sse_router
from support.event_streams import Item, Order
from support.web_server import Site, serving

PATIENCE = 60.0
COMMAND = str(Path(sys.executable).with_name("rowsignal"))


@asynccontextmanager
async def gateway(
    nats: str, database: str, *, engine: AsyncEngine | None = None, **options: Any
) -> AsyncIterator[Site]:
    """Serve streams of orders and items from NATS; with an engine, the current rows as well."""
    source = JetStreamSource(nats, database, engine=engine)
    options.setdefault("limits", Limits(heartbeat=0.3, write_interval=0.01))
    options.setdefault("tables", [Order, Item])
    app = FastAPI()
    app.include_router(create_sse_router(source=source, **options))
    async with serving(app) as site:
        yield site
    await source.aclose()


@dataclass
class GatewayProcess:
    """A `rowsignal gateway` of its own, which tests kill, stop and continue."""

    port: int
    process: asyncio.subprocess.Process

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def until_ready(self) -> None:
        """Wait until it serves streams; fail where it ends."""
        async with asyncio.timeout(PATIENCE), httpx.AsyncClient() as client:
            while True:
                assert self.process.returncode is None, await self.process.communicate()
                try:
                    answer = await client.get(f"{self.address}/health/ready")
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
                    continue
                assert answer.json() == {"status": "ready"}
                return

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def kill(self) -> None:
        """Kill without a warning, also where it is stopped."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.communicate()


@asynccontextmanager
async def gateway_process(*arguments: str, port: int = 0) -> AsyncIterator[GatewayProcess]:
    """Run `rowsignal gateway` for the length of a block."""
    number = port or free_port()
    process = await asyncio.create_subprocess_exec(
        COMMAND, "gateway", "--port", str(number), *arguments, stderr=-1, stdout=-1
    )
    gateway = GatewayProcess(number, process)
    try:
        await gateway.until_ready()
        yield gateway
    finally:
        await gateway.kill()
