"""The capture of the offered tables and the position of their log, for status pages."""

import asyncio
from collections.abc import Mapping

from rowsignal.sse.access.exposures import Exposure
from rowsignal.streams.change_source import ChangeSource
from rowsignal.triggers.catalog import Capture

FRESH = 5.0  # seconds that a status page may lag behind


class Sources:
    """The captures of the offered tables, as of the last refresh."""

    def __init__(self, source: ChangeSource, exposures: Mapping[str, Exposure]) -> None:
        self.captures: dict[str, Capture] = {}
        self._source = source
        self._exposures = exposures
        self._read_at = -FRESH

    @property
    def position(self) -> str | None:
        """The position up to which the log was read; None while no stream reads it."""
        return self._source.position

    async def refresh(self) -> None:
        """Read the captures from the catalogue, unless they are recent."""
        now = asyncio.get_running_loop().time()
        if now - self._read_at < FRESH:
            return
        names = {it.full_name: it.name for it in self._exposures.values()}
        found = await self._source.captures(names)
        self.captures = {names[name]: capture for name, capture in found.items()}
        self._read_at = now
