"""A real uvicorn in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import uvicorn

PATIENCE = 30.0


class Server(uvicorn.Server):
    """Tells when it accepts connections."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_ready = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_ready.set()


@dataclass
class Site:
    """Where an application is served."""

    port: int
    server: Server
    client: httpx.AsyncClient
    task: "asyncio.Task[None]"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def stop(self) -> None:
        """Stop as SIGTERM does, and wait for the end."""
        self.server.should_exit = True
        async with asyncio.timeout(PATIENCE):
            await self.task


@asynccontextmanager
async def serving(
    app: Any, *, port: int = 0, grace: int = 5, lifespan: Literal["auto", "off"] = "auto"
) -> AsyncIterator[Site]:
    """Serve an application for the length of a block, by default on a free port."""
    with socket.create_server(("127.0.0.1", port), reuse_port=False) as listener:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan=lifespan,
            timeout_graceful_shutdown=grace,
        )
        server = Server(config)
        task = asyncio.create_task(server.serve([listener]))
        ready = asyncio.create_task(server.is_ready.wait())
        await asyncio.wait({task, ready}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            await task
        number = listener.getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{number}", timeout=10) as client:
            site = Site(number, server, client, task)
            try:
                yield site
            finally:
                await site.stop()


@asynccontextmanager
async def served(
    app: Any, *, lifespan: Literal["auto", "off"] = "auto"
) -> AsyncIterator[httpx.AsyncClient]:
    """Serve an application for those who need nothing but a client for it."""
    async with serving(app, lifespan=lifespan) as site:
        yield site.client
