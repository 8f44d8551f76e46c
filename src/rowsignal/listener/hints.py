"""The interface of hint sources: LISTEN, or a relay's messages over NATS."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.identifiers import QualifiedName
from rowsignal.listener.timings import Timings
from rowsignal.nats.subjects import tokens
from rowsignal.payload import Hint

Result = TypeVar("Result")
HintOrigin = Literal["postgresql", "nats"]
RelayedCapture = Literal["log", "wal"]  # how a relay learns of a table's changes


@dataclass(frozen=True, slots=True)
class RelayedTable:
    """A table whose messages are taken as hints; `key` has its key columns in their order.

    Without `key` each message concerns any rows of the table.
    """

    name: QualifiedName
    key: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RelayedLog:
    """Tables whose messages only say that there is more in the change log."""

    tables: tuple[QualifiedName, ...]


Target = int | RelayedTable | RelayedLog  # what is armed; a number is a bucket of LISTEN


def relayed_token(name: QualifiedName) -> str:
    """Return what names a table in the hints of its messages."""
    return tokens(*name)


class HintsUnavailableError(ConnectionError):
    """Hints do not arrive, while PostgreSQL answers."""


class Lease(Protocol):
    """A lease that makes hints of a target arrive until it is released."""

    async def release(self) -> None:
        """Let them come no longer."""


class Side(Protocol):
    """Runs queries on a side connection, not on the one that listens."""

    async def run(
        self, work: Callable[[AsyncConnection], Awaitable[Result]], *, timeout: float
    ) -> Result:
        """Run `work`; `TimeoutError` after `timeout` seconds."""


class Inlet(Protocol):
    """Takes what arrives. Methods must not block."""

    def received(self, channel: str, payload: str) -> None:
        """Take one notification."""

    def hinted(self, hint: Hint, *, is_read: bool) -> None:
        """Take a hint that is decoded; `is_read` is false where the message could not be read."""

    def missed(self) -> None:
        """Take note that any waited-for row may have changed."""

    def rearm(self) -> None:
        """Take note that other tables may have hints now."""


class HintConnection(Protocol):
    """One connection on which hints arrive."""

    lost: asyncio.Event

    def states(self, side: Side, timings: Timings) -> AsyncGenerator[str | None, None]:
        """Yield None while hints arrive and else the reason, again and again.

        Raises what ends the connection, `HintsUnavailableError` where hints never arrived.
        """

    async def arm(self, target: Target, timeout: float) -> Lease | None:
        """Make hints of a target arrive; return None where that is not possible."""

    async def capture_of(self, name: QualifiedName, timeout: float) -> RelayedCapture | None:
        """Return how a relay learns of a table's changes; None for one that is not relayed."""

    def late_writers(self) -> frozenset[str]:
        """Return what may still go unreported after arming, beside PostgreSQL's open writers."""

    async def close(self) -> None:
        """Drop the connection without waiting for the server."""
