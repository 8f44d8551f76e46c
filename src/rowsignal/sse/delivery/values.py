"""Changes with the values that readers are shown."""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence

from sqlalchemy.exc import DataError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.changes import Change, Operation
from rowsignal.listener import OUTAGES, reconnect_delays
from rowsignal.postgres.connections import OwnConnection, beside
from rowsignal.sse.access.exposures import Exposure, Row
from rowsignal.sse.access.views import Event
from rowsignal.sse.delivery.fanout import FanOut
from rowsignal.sse.delivery.rows import current_rows, pin_settings

logger = logging.getLogger("rowsignal.sse")

LOOK_TIMEOUT = 30.0


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

    async def events(
        self,
        changes: Iterable[tuple[Change, Row | None]],
        more_columns: Mapping[str, frozenset[str]],
    ) -> list[Event]:
        """Return what changes, with the values before them, tell of the offered tables, in order.

        `more_columns` names, by table, columns that are needed though they do not leave.
        """
        events: list[Event] = []
        unread: dict[str, list[Event]] = {}
        for change, old in changes:
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
            is_pooled = self._own.is_pooled
            if is_pooled or self._pinned is not connection:
                await pin_settings(connection, is_local=is_pooled)
                self._pinned = connection
            wanted = exposure.columns | more
            return await current_rows(connection, exposure, list(keys.values()), wanted)

        rows = await self._own.run(look, timeout=LOOK_TIMEOUT)
        found = dict(zip(keys, rows, strict=True))
        for event in events:
            event.new = found.get(event.row_key)


def _event(change: Change, exposure: Exposure, old: Row | None) -> Event:
    key = change.key
    return Event(
        operation=change.operation,
        exposure=exposure,
        # jsonb sorts names in its own way; readers get them in the order of the key.
        key=None if key is None else {name: key[name] for name in exposure.key},
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


async def read_patiently(
    values: Values, changes: Sequence[tuple[Change, Row | None]], fanout: FanOut
) -> list[Event]:
    """Return the events of changes; while the database is away, try again."""
    delays = reconnect_delays()
    while True:
        more = {name: fanout.columns_of(name) for name in fanout.exposures}
        try:
            return await values.events(changes, more)
        except (DataError, ProgrammingError) as error:  # no patience mends these
            logger.exception("rows can not be read")
            names = {f"{change.schema}.{change.table}" for change, _ in changes}
            fanout.reset(f"Rows can not be read: {type(error.orig).__name__}.", names)
            return []
        except OUTAGES as error:
            logger.warning("rows can not be read just now: %s", error)
            await asyncio.sleep(next(delays))
