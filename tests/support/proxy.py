"""A TCP proxy that misbehaves on command: it stalls, cuts, refuses, or counts bytes to a cut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy.engine import make_url


class Proxy:
    """Forwards connections from a loopback port to a TCP address or a Unix socket."""

    def __init__(self, target: tuple[str, int] | str) -> None:
        self.target = target
        self.port = 0
        self.connections = 0
        self.cut_after: int | None = None  # bytes towards the client, of each new connection
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Accept connections (again), on the same port as before."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Take no new connections; those that are open go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def stall(self) -> None:
        """Swallow every byte in both directions, and close nothing: a half-open path."""
        self._flowing.clear()

    def abandon(self) -> None:
        """Swallow every byte of the open connections, and close none; new ones flow."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    def resume(self) -> None:
        """Let what was held back go on."""
        self._flowing.set()

    async def cut(self) -> None:
        """Reset every open connection."""
        links = tuple(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    async def close(self) -> None:
        await self.refuse()
        self.resume()
        await asyncio.sleep(0.01)  # who was accepted just now gets here
        while self._links:
            await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        link.add_done_callback(self._links.discard)
        self.connections += 1
        try:
            with suppress(asyncio.CancelledError, OSError):
                try:
                    await self._link(reader, writer)
                except* OSError:  # of either direction, or of both
                    pass
        finally:
            writer.transport.abort()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await self._connect()
        budget, flowing = self.cut_after, self._flowing
        try:
            async with asyncio.TaskGroup() as both:
                up = both.create_task(self._pump(reader, far_writer, None, flowing))
                down = both.create_task(self._pump(far_reader, writer, budget, flowing))
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                up.cancel()
                down.cancel()
        finally:
            far_writer.transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.target, str):
            return await asyncio.open_unix_connection(self.target)
        return await asyncio.open_connection(*self.target)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        budget: int | None,
        flowing: asyncio.Event,
    ) -> None:
        while data := await source.read(65536):
            await flowing.wait()
            if budget is not None:
                data, budget = data[:budget], budget - len(data)
            sink.write(data)
            await sink.drain()
            if budget is not None and budget <= 0:
                return


@asynccontextmanager
async def proxied(target: tuple[str, int] | str) -> AsyncIterator[Proxy]:
    """Run a proxy for the length of a block."""
    proxy = Proxy(target)
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.close()


@asynccontextmanager
async def through_proxy(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """Lead to the test's server over TCP, through a proxy that can stall."""
    address = make_url(url)
    socket = f"{address.query['host']}/.s.PGSQL.{address.query.get('port', 5432)}"
    async with proxied(socket) as proxy:
        far = address.set(host="127.0.0.1", port=proxy.port, query={})
        yield proxy, far.render_as_string(hide_password=False)
