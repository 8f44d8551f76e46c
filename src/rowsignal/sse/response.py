"""The answer that does not end: bytes as they come, watched for a client that has gone."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rowsignal.sse.readers import Reader

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Sends what `opening` yields, and then what the reader's buffer gets, until it is closed.

    One task beside the request's own waits for the client to go. `closed` is called when it is
    over, whatever the reason.
    """

    media_type = "text/event-stream"

    def __init__(
        self, opening: AsyncGenerator[bytes, None], reader: Reader, closed: Callable[[], None]
    ) -> None:
        super().__init__(headers=HEADERS)
        # An endless body has no length.
        del self.headers["content-length"]
        self.opening = opening
        self.reader = reader
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI, HTTP message format)."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._stream(receive, send)
        finally:
            await self.opening.aclose()
            self.closed()
        if not self.reader.is_gone:
            await send({"type": "http.response.body", "body": b""})

    async def _stream(self, receive: Receive, send: Send) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- ASGI applications run in tasks
        self.reader.abort = task.cancel
        watching = asyncio.create_task(_gone(receive, self.reader))
        try:
            await self._send_all(send)
        except asyncio.CancelledError:
            if not self.reader.is_gone:
                raise
            task.uncancel()
        finally:
            self.reader.abort = None
            watching.cancel()

    async def _send_all(self, send: Send) -> None:
        reader, loop = self.reader, asyncio.get_running_loop()
        async for chunk in self.opening:
            reader.writing_since = loop.time()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            reader.writing_since = None
        while chunk := await reader.take():
            reader.writing_since = loop.time()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            reader.writing_since = None


async def _gone(receive: Receive, reader: Reader) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.give_up()
