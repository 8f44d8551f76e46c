"""The capture of the offered tables and the position of their log, for status pages."""

import asyncio
from collections.abc import Mapping

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.tail import LogTail
from rowsignal.sse.access.exposures import Exposure
from rowsignal.streams.catalog import TableCatalog
from rowsignal.streams.side_reader import SideReader
from rowsignal.triggers.catalog import Capture

FRESH = 5.0


class Sources:
    """The captures of the offered tables, as of the last refresh."""

    def __init__(self, engine: AsyncEngine, exposures: Mapping[str, Exposure]) -> None:
        self.captures: dict[str, Capture] = {}
        self._engine = engine
        self._exposures = exposures
        self._read_at = -FRESH

    @property
    def position(self) -> str | None:
        """The position up to which the log was read; None while no stream reads it."""
        tail = LogTail.of(self._engine)
        return None if tail.mode == "stopped" else tail.position

    async def refresh(self) -> None:
        """Read the captures from the catalogue, unless they are recent."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at < FRESH:
            return
        names = {it.full_name: it.name for it in self._exposures.values()}
        async with SideReader.of(self._engine):
            states = await TableCatalog.of(self._engine).ask(names)
        self.captures = {names[name]: state.capture for name, state in states.items()}
        self._read_at = now
