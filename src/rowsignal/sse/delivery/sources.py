"""Where an outlet's changes come from: found out by looking at the tables' triggers."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.exceptions import NotWatchedError
from rowsignal.postgres.connections import OwnConnection, beside
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.delivery.fanout import FanOut
from rowsignal.sse.delivery.feeds import HintFeed, LogFeed
from rowsignal.sse.delivery.values import Values
from rowsignal.triggers.catalog import Capture, captures

FRESH = 5.0
ANSWER = 10.0
SWITCHED = "How changes of a table are captured was changed."


class Sources:
    """The feeds of an outlet: the log for tables that have one, hints for the others."""

    def __init__(
        self, engine: AsyncEngine, exposures: Mapping[str, Exposure], fanout: FanOut
    ) -> None:
        self._engine = engine
        self._exposures = exposures
        self._fanout = fanout
        self._starting = asyncio.Lock()
        self._looked_at = -FRESH
        self._own = OwnConnection(beside(engine))
        self.captures: dict[str, Capture] = {}
        self.values = Values(engine, exposures)
        self.log = LogFeed(engine, fanout, self.values)
        self.hints = HintFeed(engine, fanout, self.values)

    def are_logged(self, names: Iterable[str]) -> bool:
        """Tell whether changes of all these tables are logged."""
        return all(self.captures[name].kind == "log" for name in names)

    async def start(self, names: Iterable[str]) -> None:
        """See to it that changes of these tables come; raise `NotWatchedError` if they can not."""
        async with self._starting:
            await self.look()
            for name in names:
                if self.captures[name].kind is None:
                    raise NotWatchedError(
                        f"{name} has no triggers, so nothing would be told of it: run"
                        f" `rowsignal install {name} --log`."
                    )
            if logged := self._of_kind("log"):
                await self.log.start([exposure for _, exposure in logged])
            if hinted := self._of_kind("hint"):
                await self.hints.start(hinted)

    async def stop(self) -> None:
        """Follow nothing any more."""
        await self.log.stop()
        await self.hints.stop()
        await self.values.aclose()
        await self._own.close()

    async def look(self) -> None:
        """Look at the triggers, unless that was done a moment ago; restart what has changed."""
        now = asyncio.get_running_loop().time()
        if now - self._looked_at < FRESH:
            return
        exposures = list(self._exposures.values())

        async def read(connection: AsyncConnection) -> list[Capture]:
            return await captures(connection, [exposure.full_name for exposure in exposures])

        found = await self._own.run(read, timeout=ANSWER)
        fresh = {it.name: capture for it, capture in zip(exposures, found, strict=True)}
        switched = [
            name
            for name, capture in self.captures.items()
            if name not in fresh or fresh[name].kind != capture.kind
        ]
        self.captures, self._looked_at = fresh, now
        if switched:
            self._fanout.reset(SWITCHED, switched)
            await self.log.stop()
            await self.hints.stop()

    def _of_kind(self, kind: str) -> Sequence[tuple[Capture, Exposure]]:
        return [
            (capture, self._exposures[name])
            for name, capture in self.captures.items()
            if capture.kind == kind
        ]
