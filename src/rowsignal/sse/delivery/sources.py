"""How the offered tables are captured, and how far their log has been read: for status pages."""

import asyncio
from collections.abc import Mapping

from rowsignal.sse.access.exposures import Exposure
from rowsignal.streams.change_source import ChangeSource
from rowsignal.triggers.catalog import Capture

FRESH = 5.0


class Sources:
    """The captures of the offered tables, as of the last look."""

    def __init__(self, source: ChangeSource, exposures: Mapping[str, Exposure]) -> None:
        self.captures: dict[str, Capture] = {}
        self._source = source
        self._exposures = exposures
        self._looked_at = -FRESH

    @property
    def position(self) -> str | None:
        """How far the log has been read; None while no stream reads it."""
        return self._source.position

    async def look(self) -> None:
        """Look at the triggers, unless that was done a moment ago."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < FRESH:
            return
        names = {it.full_name: it.name for it in self._exposures.values()}
        found = await self._source.captures(names)
        self.captures = {names[name]: capture for name, capture in found.items()}
        self._looked_at = now
