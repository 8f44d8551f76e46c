"""Readers: one buffer each, bounded in bytes, between the fan-out and one response."""

import asyncio
import itertools
from collections.abc import Callable, Hashable, Sequence

from rowsignal.sse import frames

Rows = Sequence[tuple[Hashable, bytes]]

numbers = itertools.count()


class Reader:
    """What waits to be written to one reader.

    `push` never waits. A buffer over `limit` bytes is a reader who does not keep up: what it holds
    is thrown away, it is told to start again, and its stream ends. Others do not notice.
    `writing_since` is when a write began that has not ended; `abort` stops whoever writes.
    """

    __slots__ = (
        "_chunks",
        "_is_closed",
        "_size",
        "_waiter",
        "abort",
        "is_gone",
        "limit",
        "overflowed",
        "writing_since",
    )

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.overflowed = False
        self.is_gone = False
        self.writing_since: float | None = None
        self.abort: Callable[[], object] | None = None
        self._chunks: list[bytes] = []
        self._size = 0
        self._is_closed = False
        self._waiter: asyncio.Future[None] | None = None

    def push(self, chunk: bytes, rows: Rows | None = None) -> None:  # noqa: ARG002 -- for those who conflate
        """Add bytes; `rows` is the same in pieces, each with the row that it is about."""
        if self._is_closed:
            return
        self._chunks.append(chunk)
        self._size += len(chunk)
        if self._size > self.limit:
            self._overflow()
        self._wake()

    def close(self, last: bytes) -> None:
        """End the stream with `last`, after what is waiting."""
        if not self._is_closed:
            self.push(last)
            self._is_closed = True
            self._wake()

    def give_up(self) -> None:
        """End the stream at once: nobody reads it any more."""
        if not self.is_gone and self.abort is not None:
            self.is_gone = self._is_closed = True
            self.abort()

    async def take(self) -> bytes:
        """Wait for bytes and return all there are, joined; none at the end."""
        while not self._size:
            if self._is_closed:
                return b""
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._drain()

    def _drain(self) -> bytes:
        chunks, self._chunks, self._size = self._chunks, [], 0
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _overflow(self) -> None:
        self._drain()
        self._is_closed = self.overflowed = True
        self._chunks = [frames.reset(f"This reader fell more than {self.limit} bytes behind.")]
        self._size = len(self._chunks[0])

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
        if self._is_closed:
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
        self._rows, self._chunks, self._size = {}, [], 0
        return b"".join(chunks)
