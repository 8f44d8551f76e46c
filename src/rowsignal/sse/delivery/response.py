"""Streaming ASGI response that stops when the client disconnects."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextvars import Context, copy_context

from sse_starlette import EventSourceResponse
from starlette.types import Message, Receive, Scope, Send

from rowsignal.sse.delivery.buffers import PIECE, Reader
from rowsignal.sse.delivery.direct_writes import DirectWriter

LAST_WRITE_TIMEOUT = 0.5  # seconds to finish a frame when a stream is closed


class EventStream(EventSourceResponse):
    """Sends the frames of `opening`, then those of the reader's buffer, until the reader is closed.

    It is an `EventSourceResponse`, so that code for that class works with it. It overrides how the
    class sends: frames are encoded once for all readers, and a reader costs one task instead of
    four. `closed` is called at the end, also after an error.
    """

    def __init__(
        self, opening: AsyncGenerator[bytes, None], reader: Reader, closed: Callable[[], None]
    ) -> None:
        super().__init__(opening, ping=0)
        self.opening = opening
        self.reader = reader
        self.closed = closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request (ASGI, HTTP message format)."""
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            if scope["method"] != "HEAD":
                await self._serve(receive, send)
        finally:
            self.active = False
            # Closes the connection of a snapshot that was being read.
            await self.opening.aclose()
            self.closed()
        if not self.reader.is_gone:
            await send({"type": "http.response.body", "body": b""})
        if self.background is not None:
            await self.background()

    async def _serve(self, receive: Receive, send: Send) -> None:
        """Wait for the disconnect, while a task with a shallow stack sends.

        In this task each wake-up would pass through all middleware and routing around it.
        """
        waiting = asyncio.current_task()
        assert waiting is not None  # noqa: S101 -- ASGI applications run in tasks
        context = copy_context()
        sending = asyncio.create_task(self._send_all(send, context), context=context)
        self.reader.abort = sending.cancel
        # receive() returns at the disconnect only: nothing else ends this wait.
        sending.add_done_callback(lambda _: waiting.cancel())
        try:
            message = await receive()
            while message["type"] != "http.disconnect":
                message = await receive()
            await self._disconnected(message)
            await asyncio.Event().wait()  # until it has ended
        except asyncio.CancelledError:
            if not sending.done():
                sending.cancel()
                raise
            # Our own cancellation must not count as one by the server (Task.cancelling).
            waiting.uncancel()
        if not sending.cancelled():
            sending.result()

    async def _disconnected(self, message: Message) -> None:
        self.active = False
        self.reader.give_up()
        if self.client_close_handler_callable is not None:
            await self.client_close_handler_callable(message)

    async def _send_all(self, send: Send, context: Context) -> None:
        if not await self._send_opening(send):
            return
        reader = self.reader
        reader.write = DirectWriter(send, context).write
        while True:
            await self._wait_for_bytes()
            chunk = reader.take()
            if not chunk:
                return
            await self._write_pieces(send, chunk)

    async def _wait_for_bytes(self) -> None:
        """Wait until the buffer has bytes or ends; meanwhile changes are written directly."""
        arrival = self.reader.arrival()
        while arrival is not None:
            paused = await arrival
            if paused is None:
                return
            await paused
            self.reader.writing_since = None
            arrival = self.reader.arrival()

    async def _send_opening(self, send: Send) -> bool:
        """Send the first frames; stop if the stream is closed meanwhile, say at the token's end.

        Return whether the last frame is complete. After half a frame no further frame can be sent:
        a client that accepts no bytes at that time gets no final frame.
        """
        reader = self.reader
        if reader.is_closed:
            return True
        try:
            async with asyncio.timeout(None) as limit:
                reader.on_close = lambda: self._hurry(limit)
                await self._write_opening(send)
        except TimeoutError:
            if not reader.is_closed:
                raise
        finally:
            reader.on_close = None
            is_whole, reader.writing_since = reader.writing_since is None, None
        return is_whole

    async def _write_opening(self, send: Send) -> None:
        async for chunk in self.opening:
            await self._write_pieces(send, chunk)
            if self.reader.is_closed:
                return

    def _hurry(self, limit: asyncio.Timeout) -> None:
        grace = 0.0 if self.reader.writing_since is None else LAST_WRITE_TIMEOUT
        limit.reschedule(asyncio.get_running_loop().time() + grace)

    async def _write_pieces(self, send: Send, chunk: bytes) -> None:
        """Write a long chunk in pieces: servers copy unsent bytes for each reader."""
        clock = asyncio.get_running_loop().time
        for start in range(0, len(chunk), PIECE):
            self.reader.writing_since = clock()
            piece = chunk[start : start + PIECE]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        self.reader.writing_since = None
