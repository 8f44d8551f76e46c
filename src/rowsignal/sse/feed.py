"""The feed of a fan-out: committed changes with the values that readers are shown."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log import Batch, ChangeLog
from rowsignal.changes import Change, Operation, Reset
from rowsignal.engines import OwnConnection, beside
from rowsignal.positions import Position, Snapshot, decode
from rowsignal.sse.exposures import Exposure, Row
from rowsignal.sse.fanout import FanOut
from rowsignal.sse.rows import current_rows, pin_settings
from rowsignal.sse.views import Event

logger = logging.getLogger("rowsignal.sse")

LOOK_TIMEOUT = 30.0


def snapshot_of(position: str) -> Snapshot | None:
    """Return the snapshot of a whole position; None when the server keeps it, or it is a window."""
    place = decode(position)
    return place.seen if isinstance(place, Position) and place.upto is None else None


class Values:
    """Adds values to changes: those that the log has, else the rows as they are now.

    What was changed once more since is shown as it is now, and again when that change comes:
    whoever follows ends up with the table.
    """

    def __init__(self, engine: AsyncEngine, exposures: Mapping[str, Exposure]) -> None:
        self._exposures = exposures
        self._own = OwnConnection(beside(engine))
        self._pinned: AsyncConnection | None = None

    async def aclose(self) -> None:
        """Close the connection."""
        await self._own.close()

    async def events(self, batch: Batch, more_columns: Mapping[str, frozenset[str]]) -> list[Event]:
        """Return what a batch tells of the offered tables, in order.

        `more_columns` names, by table, columns that are needed though they do not leave.
        """
        before: Sequence[Row | None] = batch.before or [None] * len(batch.changes)
        events: list[Event] = []
        unread: dict[str, list[Event]] = {}
        for change, old in zip(batch.changes, before, strict=True):
            exposure = self._exposures.get(f"{change.schema}.{change.table}")
            if exposure is None:
                continue
            event = _event(change, exposure, old)
            events.append(event)
            wanted = exposure.columns | more_columns.get(exposure.name, frozenset())
            if not _is_told(event, change, wanted):
                unread.setdefault(exposure.name, []).append(event)
        for name, group in unread.items():
            await self._read(self._exposures[name], group, more_columns.get(name, frozenset()))
        return events

    async def _read(
        self, exposure: Exposure, events: Sequence[Event], more: frozenset[str]
    ) -> None:
        """Look the rows up that the log does not have, each once."""
        keys = {event.row_key: event.key for event in events if event.key is not None}

        async def look(connection: AsyncConnection) -> list[Row | None]:
            if self._pinned is not connection:
                await pin_settings(connection, is_local=False)
                self._pinned = connection
            wanted = exposure.columns | more
            return await current_rows(connection, exposure, list(keys.values()), wanted)

        rows = await self._own.run(look, timeout=LOOK_TIMEOUT)
        found = dict(zip(keys, rows, strict=True))
        for event in events:
            event.new = found.get(event.row_key)


class Feed:
    """Reads the log, and the hints of tables without one, for a fan-out."""

    def __init__(
        self, engine: AsyncEngine, exposures: Mapping[str, Exposure], fanout: FanOut
    ) -> None:
        self._engine = engine
        self._exposures = exposures
        self._fanout = fanout
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.position: str | None = None
        self.log = ChangeLog(engine)
        self.values = Values(engine, exposures)

    def logs(self, names: Iterable[str]) -> bool:
        """Tell whether changes of all these tables are logged."""
        return True

    def is_at(self, position: str) -> bool:
        """Tell whether a position is the one that the feed has come to."""
        return position == self.position

    async def start(self, names: Iterable[str]) -> None:
        """Begin to read, unless it has begun; raise what keeps it from that."""
        async with self._starting:
            if self._task is None or self._task.done():
                self.position = await self.log.position()
                self._fanout.publish([], snapshot_of(self.position))
                self._task = asyncio.create_task(self._run(), name="rowsignal sse feed")

    async def stop(self) -> None:
        """Stop reading; close the connections."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.values.aclose()
        await self.log.aclose()

    async def _run(self) -> None:
        async for batch in self._tail():
            if isinstance(batch, Reset):
                self._fanout.reset(batch.reason, self._exposures)
                self.position = batch.position
                continue
            more = {name: self._fanout.columns_of(name) for name in self._exposures}
            events = await self.values.events(batch, more)
            self.position = batch.position
            self._fanout.publish(events, snapshot_of(batch.position))

    async def _tail(self) -> AsyncIterator[Batch | Reset]:
        position = self.position or await self.log.position()
        tables = [(e.table.schema or "public", e.table.name) for e in self._exposures.values()]
        while True:
            batch = await self.log.read(position, tables=tables)
            position = batch.position or position
            yield batch
            await asyncio.sleep(0.02)


def _event(change: Change, exposure: Exposure, old: Row | None) -> Event:
    return Event(
        operation=change.operation,
        exposure=exposure,
        key=change.key,
        changed=change.changed,
        new=change.row,
        old=old,
        position=change.position,
        transaction_id=change.transaction_id,
        captured_at=change.captured_at,
    )


def _is_told(event: Event, change: Change, wanted: Iterable[str]) -> bool:
    """Tell whether the log itself says all that is to be shown."""
    if change.key is None or change.operation is Operation.TRUNCATE:
        return True
    if change.operation is Operation.DELETE:
        return event.old is not None
    if change.row is not None and change.row.keys() >= set(wanted):
        return True
    event.new = None
    return False
