"""The side connection on which all streams of an event loop read rows and the catalogue."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Self, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.listener import Listener, reconnect_delays
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import describe, is_locked, is_outage, is_stale
from rowsignal.postgres.json_rows import pin_settings

logger = logging.getLogger("rowsignal.streams")

READ_TIMEOUT = 30.0
# A locked table delays the reads of other tables by at most this many seconds.
SETTINGS = {"lock_timeout": "500ms", "idle_session_timeout": "0"}

Result = TypeVar("Result")
Work = Callable[[AsyncConnection], Awaitable[Result]]


class SideReader:
    """Reads at the listener's address, which is the primary where positions come from.

    It stays open while at least one user is inside `async with`.
    """

    def __init__(self, listener: Listener) -> None:
        self._side = SideConnection(beside(listener.engine, listener.listen_url))
        self._pinned: AsyncConnection | None = None
        self._users = 0

    @classmethod
    def of(cls, engine: AsyncEngine) -> "SideReader":
        """Return the running event loop's reader for an engine."""
        listener = Listener.of(engine)
        if listener not in _readers:
            _readers[listener] = cls(listener)
        return _readers[listener]

    async def __aenter__(self) -> Self:
        self._users += 1
        return self

    async def __aexit__(self, *_: object) -> None:
        self._users -= 1
        if not self._users:
            await self._side.close()

    async def read(self, work: Work[Result], *, timeout: float = READ_TIMEOUT) -> Result:
        """Run `work` with settings under which every role gets the same text of values."""

        async def pinned(connection: AsyncConnection) -> Result:
            is_pooled = self._side.is_pooled
            # A pooler hands out another server connection for each transaction, with other
            # settings.
            if is_pooled or self._pinned is not connection:
                await pin_settings(connection, is_local=is_pooled, more=SETTINGS)
                self._pinned = connection
            return await work(connection)

        return await self._side.run(pinned, timeout=timeout)

    async def read_patiently(self, work: Work[Result]) -> Result:
        """Run `work`; repeat it while the server is unavailable or a table is locked.

        Raises every other error.
        """
        delays, has_retried = reconnect_delays(), False
        while True:
            try:
                return await self.read(work)
            except Exception as error:
                if is_stale(error) and not has_retried:  # a plan from before an ALTER TABLE
                    has_retried = True
                elif not is_outage(error) and not is_locked(error):
                    raise
                logger.warning(
                    "rows of streamed tables cannot be read; trying again: %s", describe(error)
                )
            await asyncio.sleep(next(delays))


_readers: WeakKeyDictionary[Listener, SideReader] = WeakKeyDictionary()
