"""The answer that does not end: bytes as they come, watched for a client that has gone."""

import asyncio
from collections.abc import AsyncGenerator, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from rowsignal.sse.delivery.buffers import Reader

PIECE = 64 * 1024
HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}


class EventStream(Response):
    """Sends what `opening` yields, and then what the reader's buffer gets, until it is closed.

    `closed` is called when it is over, whatever the reason.
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
        """Wait for the client to go, while a task of its own sends: its stack is shallow.

        Here every wake-up would pass through all middleware and routing that led to this answer.
        """
        waiting = asyncio.current_task()
        assert waiting is not None  # noqa: S101 -- ASGI applications run in tasks
        sending = asyncio.create_task(self._send_all(send))
        self.reader.abort = sending.cancel
        sending.add_done_callback(lambda _: waiting.cancel())
        try:
            while (await receive())["type"] != "http.disconnect":
                pass
            self.reader.give_up()
            await asyncio.Event().wait()  # until it has ended
        except asyncio.CancelledError:
            if not sending.done():
                sending.cancel()
                raise
            waiting.uncancel()
        if not sending.cancelled():
            sending.result()

    async def _send_all(self, send: Send) -> None:
        reader, clock = self.reader, asyncio.get_running_loop().time
        async for chunk in self.opening:
            await self._write_pieces(send, chunk)
        while True:
            arrival = reader.arrival()
            if arrival is not None:
                await arrival
            chunk = reader.take()
            if not chunk:
                return
            if len(chunk) > PIECE:
                await self._write_pieces(send, chunk)
                continue
            reader.writing_since = clock()
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
            reader.writing_since = None

    async def _write_pieces(self, send: Send, chunk: bytes) -> None:
        """Write a long chunk: servers copy what they can not send at once, for each reader."""
        clock = asyncio.get_running_loop().time
        for start in range(0, len(chunk), PIECE):
            self.reader.writing_since = clock()
            piece = chunk[start : start + PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self.reader.writing_since = None
