"""State that processes can share: places of readers, tickets, and the list of open streams."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self


class ReaderCounts(Protocol):
    """Counts the open streams of each principal, in one process or over several."""

    async def acquire(self, principal: str, most: int) -> bool:
        """Take one of so many places of a principal; return False where all are taken."""

    def release(self, principal: str) -> None:
        """Give a place back."""


class SharedTickets(Protocol):
    """Stores unused tickets for several hosts; `UnavailableError` while it does not answer."""

    async def put(self, owner: str, digest: str, text: str) -> None:
        """Store a ticket."""

    async def take(self, owner: str, digest: str) -> str | None:
        """Return and remove a ticket; None if there is none, or another process took it."""

    async def open_of(self, owner: str) -> int:
        """Return the number of stored tickets of an owner."""


class SharedLimits(Protocol):
    """The shared state of the processes, open inside `async with`.

    `streams` returns the open streams of this process, for the list that others see.
    """

    streams: Callable[[], Sequence[Mapping[str, Any]]]

    @property
    def readers(self) -> ReaderCounts:
        """The counts of readers."""

    @property
    def tickets(self) -> SharedTickets:
        """The tickets."""

    async def others(self) -> Sequence[Mapping[str, Any]]:
        """Return what other processes last said of themselves: `pid`, `host`, `total`, `streams`.

        Nothing while the store does not answer.
        """

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class ProcessReaderCounts:
    """The counts of this process alone."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._counts)

    async def acquire(self, principal: str, most: int) -> bool:
        """Take a place."""
        if self._counts[principal] >= most:
            return False
        self._counts[principal] += 1
        return True

    def release(self, principal: str) -> None:
        """Give a place back."""
        self._counts[principal] -= 1
        if self._counts[principal] <= 0:
            del self._counts[principal]
