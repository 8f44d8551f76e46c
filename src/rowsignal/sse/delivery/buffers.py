"""Readers: one buffer each, limited in bytes, between the fan-out and the response."""

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence

from rowsignal.sse import frames
from rowsignal.sse.delivery.direct_writes import PausedWrite

Rows = Sequence[tuple[Hashable, bytes]]

numbers = itertools.count()
JOINED = 128 * 1024  # bytes; a write costs the same whatever its size
PIECE = 64 * 1024  # bytes written at once: servers copy unsent bytes for each reader


class Reader:
    """One reader, with the bytes that wait to be written.

    `push` never waits. A reader with more than `limit` bytes is too slow: its buffer is discarded,
    it gets a reset, and its stream ends. Other readers are not affected. `writing_since` is the
    start time of the present write; `resets` counts the resets that it was sent; `abort` stops the
    task that writes, `on_close` stops the frames that precede the buffer's content. `write` writes
    bytes while that task waits for some: the buffer is for what the server does not take at once.
    """

    __slots__ = (
        "_chunks",
        "_size",
        "_waiter",
        "abort",
        "is_closed",
        "is_gone",
        "limit",
        "on_close",
        "overflowed",
        "resets",
        "write",
        "writing_since",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overflowed = False
        self.resets = 0
        self.is_gone = False
        self.writing_since: float | None = None
        self.abort: Callable[[], object] | None = None
        self.on_close: Callable[[], object] | None = None
        self.write: Callable[[bytes], PausedWrite | None] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self.is_closed = False
        self._waiter: asyncio.Future[PausedWrite | None] | None = None

    @property
    def size(self) -> int:
        """The number of bytes that wait to be written."""
        return self._size

    def push(self, chunk: bytes, rows: Rows | None = None) -> None:  # noqa: ARG002 -- for readers that conflate
        """Add bytes; `rows` holds the same bytes in pieces, each with its row."""
        if self.is_closed or self._write_at_once(chunk):
            return
        # A burst may be larger than the buffer: a reader that waits for it is not slow.
        if self._size and self._size + len(chunk) > self.limit:
            self._overflow()
        else:
            self._chunks.append(chunk)
            self._size += len(chunk)
        self._wake()

    def _write_at_once(self, chunk: bytes) -> bool:
        """Write bytes for which the task of the response waits; return whether that was done."""
        waiter = self._waiter
        if self.write is None or waiter is None or waiter.done() or len(chunk) > PIECE:
            return False
        try:
            paused = self.write(chunk)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 -- the task raises it
            waiter.set_exception(error)
        else:
            if paused is not None:
                self.writing_since = waiter.get_loop().time()
                waiter.set_result(paused)
        return True

    def close(self, last: bytes) -> None:
        """End the stream with `last`, after the waiting bytes."""
        if not self.is_closed:
            self.push(last)
            self._end()

    def give_up(self) -> None:
        """End the stream at once: the client is gone."""
        if not self.is_gone and self.abort is not None:
            self.is_gone = self.is_closed = True
            self.abort()

    def arrival(self) -> asyncio.Future[PausedWrite | None] | None:
        """Return a future to await before `take`; None if there are bytes already.

        Its result is a direct write that paused and must be awaited first, if there is one.
        """
        if self._size or self.is_closed:
            return None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def take(self) -> bytes:
        """Return the waiting bytes, small chunks joined; an empty list ends the stream."""
        self._waiter = None
        if not self._size:
            return b""
        # All readers share large chunks: joining would make a copy for each.
        return self._drain() if self._size <= JOINED else self._next()

    def _next(self) -> bytes:
        chunk = self._chunks.pop(0)
        self._size -= len(chunk)
        return chunk

    def _drain(self) -> bytes:
        chunks, self._chunks, self._size = self._chunks, [], 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _end(self) -> None:
        self.is_closed = True
        if self.on_close is not None:
            self.on_close()
        self._wake()

    def _overflow(self) -> None:
        self._discard()
        self.overflowed = True
        self.resets += 1
        self._chunks = [frames.reset(f"This reader fell more than {self.limit} bytes behind.")]
        self._size = len(self._chunks[0])
        self._end()

    def _discard(self) -> None:
        self._chunks, self._size = [], 0

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class ConflatingReader(Reader):
    """A reader that gets only the newest frame of each row if it cannot keep up.

    A newer frame is appended and the older one of the same row removed, so positions keep rising: a
    frame that was left out always precedes a frame that is still in the buffer.
    """

    __slots__ = ("_rows", "conflated")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.conflated = 0
        self._rows: dict[Hashable, bytes] = {}

    def push(self, chunk: bytes, rows: Rows | None = None) -> None:
        """Add frames; each replaces an older frame of the same row."""
        if self.is_closed:
            return
        for about, piece in rows or [(next(numbers), chunk)]:
            # Popped, not overwritten: a dict keeps the place of a key that is set again.
            older = self._rows.pop(about, None)
            if older is not None:
                self.conflated += 1
                self._size -= len(older)
            self._rows[about] = piece
            self._size += len(piece)
        if self._size > self.limit:
            self._overflow()
        self._wake()

    def _drain(self) -> bytes:
        chunks = [*self._rows.values(), *self._chunks]
        self._discard()
        return b"".join(chunks)

    def _next(self) -> bytes:
        return self._drain()

    def _discard(self) -> None:
        self._rows = {}
        super()._discard()
