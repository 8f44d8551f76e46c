"""Readers: one buffer each, bounded in bytes, between the fan-out and one response."""

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence

from rowsignal.sse import frames

Rows = Sequence[tuple[Hashable, bytes]]

numbers = itertools.count()
JOINED = 128 * 1024


class Reader:
    """What waits to be written to one reader.

    `push` never waits. A buffer over `limit` bytes is a reader who does not keep up: what it holds
    is thrown away, it is told to start again, and its stream ends. Others do not notice.
    `writing_since` is when a write began that has not ended; `resets` counts how often it was told
    that changes may be missing; `abort` stops the task that writes,
    `on_close` stops what precedes the buffer's content.
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
        self._chunks: list[bytes] = []
        self._size = 0
        self.is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def size(self) -> int:
        """How many bytes wait to be written."""
        return self._size

    def push(self, chunk: bytes, rows: Rows | None = None) -> None:  # noqa: ARG002 -- for those who conflate
        """Add bytes; `rows` is the same in pieces, each with the row that it is about."""
        if self.is_closed:
            return
        # A burst may be larger than the buffer: whoever waits for it is not behind.
        if self._size and self._size + len(chunk) > self.limit:
            self._overflow()
        else:
            self._chunks.append(chunk)
            self._size += len(chunk)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def close(self, last: bytes) -> None:
        """End the stream with `last`, after what is waiting."""
        if not self.is_closed:
            self.push(last)
            self._end()

    def give_up(self) -> None:
        """End the stream at once: nobody reads it any more."""
        if not self.is_gone and self.abort is not None:
            self.is_gone = self.is_closed = True
            self.abort()

    def arrival(self) -> asyncio.Future[None] | None:
        """Return what to wait for before `take`; None where there is no need to wait."""
        if self._size or self.is_closed:
            return None
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter

    def take(self) -> bytes:
        """Return what waits, joined unless it is much; nothing means that the stream is over."""
        self._waiter = None
        if not self._size:
            return b""
        # Large chunks are shared by all readers: joining would make a copy for each.
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
    """A reader who wants only the newest of each row when there is no time for all.

    A newer frame takes its place at the end and the older one goes, so positions keep rising:
    whatever was left out lies before something that is still to come.
    """

    __slots__ = ("_rows", "conflated")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self.conflated = 0
        self._rows: dict[Hashable, bytes] = {}

    def push(self, chunk: bytes, rows: Rows | None = None) -> None:
        """Add frames, each in place of an older one about the same row."""
        if self.is_closed:
            return
        for about, piece in rows or [(next(numbers), chunk)]:
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
