"""How the offered tables are captured, and how far their log has been read: for status pages."""

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
    """The captures of the offered tables, as of the last look."""

    def __init__(self, engine: AsyncEngine, exposures: Mapping[str, Exposure]) -> None:
        self.captures: dict[str, Capture] = {}
        self._engine = engine
        self._exposures = exposures
        self._looked_at = -FRESH

    @property
    def position(self) -> str | None:
        """How far the log has been read; None while no stream reads it."""
        tail = LogTail.of(self._engine)
        return None if tail.mode == "stopped" else tail.position

    async def look(self) -> None:
        """Look at the triggers, unless that was done a moment ago."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < FRESH:
            return
        names = {it.full_name: it.name for it in self._exposures.values()}
        async with SideReader.of(self._engine):
            states = await TableCatalog.of(self._engine).ask(names)
        self.captures = {names[name]: state.capture for name, state in states.items()}
        self._looked_at = now
