"""The answer that does not end: bytes as they come, watched for a client that has gone."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Sends what `chunks` yields until it ends, the client goes, or a write takes too long.

    One task beside the request's own waits for the client to go. `stall` bounds each write, in
    seconds: a client that reads nothing any more would otherwise hold its place for ever.
    """

    media_type = "text/event-stream"

    def __init__(
        self, chunks: AsyncGenerator[bytes, None], stall: float, closed: Callable[[], None]
    ) -> None:
        super().__init__(headers=HEADERS)
        # An endless body has no length.
        del self.headers["content-length"]
        self.chunks = chunks
        self.stall = stall
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI, HTTP message format); call `closed` when it is over."""
        try:
            await self._answer(scope, receive, send)
        finally:
            await self.chunks.aclose()
            self.closed()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return
        sending = asyncio.current_task()
        watching = asyncio.create_task(_gone(receive))
        left = False

        def leave(_: object) -> None:
            nonlocal left
            if not watching.cancelled() and sending is not None:
                left = True
                sending.cancel()

        watching.add_done_callback(leave)
        try:
            await self._send_all(send)
        except asyncio.CancelledError:
            if not left or sending is None:
                raise
            sending.uncancel()
        finally:
            watching.remove_done_callback(leave)
            watching.cancel()

    async def _send_all(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None) as patience:
                async for chunk in self.chunks:
                    patience.reschedule(loop.time() + self.stall)
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    patience.reschedule(None)
                patience.reschedule(loop.time() + self.stall)
                await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
