"""Turns: a limited number at a time, granted to principals in rotation."""

import asyncio
from collections import Counter, deque
from types import TracebackType
from typing import Self


class Turn:
    """A place, or a request for one; the future `granted` is done when the place is granted."""

    def __init__(self, turns: "FairTurns", principal: str) -> None:
        self.principal = principal
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._turns = turns

    async def __aenter__(self) -> Self:
        try:
            # A grant may come between a cancellation and its arrival here: the future must take it.
            await asyncio.shield(self.granted)
        except asyncio.CancelledError:
            self.release()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.release()

    def release(self) -> None:
        """Return the place, or withdraw the request."""
        self._turns.release(self)


class FairTurns:
    """A limited number of places, granted to principals round robin.

    One principal holds at most `each` of them, so its readers do not block those of others.
    """

    def __init__(self, places: int, each: int | None = None) -> None:
        self._free = places
        self._each = each or places
        self._held: Counter[str] = Counter()
        self._holders: set[Turn] = set()
        self._waiting: dict[str, deque[Turn]] = {}

    def request(self, principal: str) -> Turn:
        """Return a turn, granted at once or later; the caller must release it in both cases."""
        turn = Turn(self, principal)
        self._waiting.setdefault(principal, deque()).append(turn)
        self._serve()
        return turn

    def release(self, turn: Turn) -> None:
        """Pass the place on, or remove a turn that was not granted from the queue."""
        principal = turn.principal
        if turn in self._holders:
            self._holders.discard(turn)
            self._free += 1
            self._held[principal] -= 1
            if not self._held[principal]:
                del self._held[principal]
            self._serve()
        elif turn in self._waiting.get(principal, ()):
            self._waiting[principal].remove(turn)
            if not self._waiting[principal]:
                del self._waiting[principal]

    def _serve(self) -> None:
        # A grant changes the dict that is gone through.
        for principal in tuple(self._waiting):
            if self._free and self._held[principal] < self._each:
                waiting = self._waiting.pop(principal)
                self._grant(waiting.popleft())
                if waiting:  # the principal moves to the end of the rotation
                    self._waiting[principal] = waiting

    def _grant(self, turn: Turn) -> None:
        self._free -= 1
        self._held[turn.principal] += 1
        self._holders.add(turn)
        turn.granted.set_result(None)
