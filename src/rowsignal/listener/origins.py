"""The two origins of hints, and how a connection to each is opened."""

from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import missing_extra
from rowsignal.listener.connection import Wire
from rowsignal.listener.hints import HintConnection, HintOrigin, Inlet, Side


class Origin(Protocol):
    """Opens connections on which hints arrive."""

    name: HintOrigin
    label: str

    async def open(self, side: Side, inlet: Inlet, *, timeout: float) -> HintConnection:
        """Connect; raise the error of the server or the network."""

    async def close(self) -> None:
        """Close what connections have in common."""


class NotificationOrigin:
    """PostgreSQL's notifications."""

    name: HintOrigin = "postgresql"
    label = "LISTEN is"

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def open(self, side: Side, inlet: Inlet, *, timeout: float) -> HintConnection:  # noqa: ARG002 -- states() is given it
        """Connect and LISTEN."""
        return await Wire.open(self._engine, inlet.received, timeout=timeout)

    async def close(self) -> None:
        """Close the engine."""
        await self._engine.dispose()


class RelayOrigin:
    """The messages of a relay in NATS."""

    name: HintOrigin = "nats"
    label = "Hints over NATS are"

    def __init__(self, url: str) -> None:
        """Raise `MissingExtraError` without nats-py: polling for ever would hide it."""
        try:
            from rowsignal.listener import relayed  # noqa: PLC0415 -- an optional extra
        except ModuleNotFoundError as error:
            raise missing_extra("Listener(listen_url='nats://...')", "nats", error) from error
        self._connections = relayed.RelayConnection
        self._url = url

    async def open(self, side: Side, inlet: Inlet, *, timeout: float) -> HintConnection:
        """Connect to NATS."""
        return await self._connections.open(self._url, side, inlet, timeout=timeout)

    async def close(self) -> None:
        """Close nothing: there is no pool."""
