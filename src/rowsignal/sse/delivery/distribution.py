"""Distribution of events to readers: filtered and encoded once for each group."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from rowsignal.sse import frames
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import UnknownHistoryError
from rowsignal.sse.delivery.buffers import Reader
from rowsignal.sse.delivery.context import DeliveryContext
from rowsignal.sse.delivery.groups import (
    UNSHOWABLE,
    GroupKey,
    JoiningReader,
    Shown,
    SubscriberGroup,
)

UNKNOWN = (
    "It is not known which rows this reader has seen. Log the filter's columns to make such a"
    " stream resumable."
)
MAX_HELD = 20_000
AT_ONCE = 100  # events published in one turn of the event loop: some milliseconds of work


class Distribution:
    """Writes to the readers of some tables: at once if idle, else once per write interval."""

    def __init__(self, exposures: Mapping[str, Exposure], context: DeliveryContext) -> None:
        self.exposures = exposures
        self.context = context
        self._groups: dict[GroupKey, SubscriberGroup] = {}
        self._joining: dict[Reader, JoiningReader] = {}
        self._waiting: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0

    @property
    def readers(self) -> int:
        """The number of readers, including readers that catch up."""
        return sum(len(readers) for _, readers in self._everybody())

    def filter_columns(self, table: str) -> frozenset[str]:
        """Return the columns of a table that the readers' filters use."""
        groups = (group for group, _ in self._everybody())
        return frozenset().union(*(group.row_filters[table].filter_columns for group in groups))

    def new_group(self, key: GroupKey) -> SubscriberGroup:
        """Return a new group for one reader that is still catching up."""
        tracked = self.context.limits.max_tracked_rows
        return SubscriberGroup(key, self.exposures, tracked, self._count_refusal)

    def hold(self, reader: Reader, group: SubscriberGroup) -> JoiningReader:
        """Hold back events published from now on for a reader that must catch up first."""
        # Events from before must not be held for a reader that finds them in the log.
        self.flush()
        joining = self._joining[reader] = JoiningReader(reader, group)
        return joining

    def let_go(self, joining: JoiningReader) -> None:
        """Drop the held events: the reader is too far behind to join yet."""
        self._joining.pop(joining.reader, None)

    def attach(self, joining: JoiningReader) -> bool:
        """Send the held events to a reader, and from then on all published events.

        Return whether that is settled: with too many events to hold, the reader must read on first.
        """
        self.flush()
        if joining.has_lapsed:
            return False
        # It has left, or was closed, while it caught up.
        if self._joining.pop(joining.reader, None) is None:
            return True
        group = joining.group
        # Alone at first: the held events are new to this reader, and known to the group.
        group.readers = {joining.reader}
        self._show(group, joining.events)
        shared = self._groups.setdefault(group.key, group)
        if shared is not group:
            shared.remember(group)
            shared.readers.add(joining.reader)
        return True

    def detach(self, reader: Reader, key: GroupKey) -> None:
        """Remove a reader, and its group with the last reader."""
        self._joining.pop(reader, None)
        group = self._groups.get(key)
        if group is not None:
            group.readers.discard(reader)
            if not group.readers:
                del self._groups[key]

    def publish(self, events: Sequence[Event]) -> None:
        """Accept committed changes, in order."""
        counts = self.context.counts
        for event in events:
            name = event.exposure.name
            counts.changes.setdefault(name, Counter())[str(event.operation)] += 1
            counts.last_change[name] = time.time()
        self._waiting.extend(events)
        if len(self._waiting) >= AT_ONCE:
            self.flush()
        elif self._timer is None and events:
            self._flush_or_wait()

    def _flush_or_wait(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._flushed_at + self.context.limits.write_interval
        # An idle stream is written to at once; a busy one in joined writes.
        if loop.time() >= due:
            self.flush()
        else:
            self._timer = loop.call_at(due, self.flush)

    def flush(self) -> None:
        """Write the waiting events to all readers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._waiting = self._waiting, []
        if events:
            self._flushed_at = asyncio.get_running_loop().time()
            for group in list(self._groups.values()):
                self._show(group, events)
            for joining in tuple(self._joining.values()):
                self._keep(joining, events)
            self.context.flushed(events)

    def _keep(self, joining: JoiningReader, events: Sequence[Event]) -> None:
        joining.events.extend(events)
        if len(joining.events) > MAX_HELD:
            joining.events.clear()
            joining.has_lapsed = True
            self.let_go(joining)

    def _show(self, group: SubscriberGroup, events: Sequence[Event]) -> None:
        try:
            rows = group.show(events)
        except UnknownHistoryError:
            self._give_up(group, UNKNOWN)
        else:
            self._write(group, rows)

    def _write(self, group: SubscriberGroup, rows: Shown) -> None:
        if not rows:
            return
        # One object, which all readers of the group share.
        joined = b"".join(chunk for _, chunk in rows)
        for reader in group.readers:
            reader.push(joined, rows)
        lost = {reader for reader in group.readers if reader.overflowed}
        group.readers -= lost
        counts = self.context.counts
        counts.overflows += len(lost)
        counts.delivered += len(rows) * len(group.readers)
        counts.bytes += len(joined) * len(group.readers)
        for name, count in Counter(name for (name, _), _ in rows).items():
            self.context.hooks.delivered(table=name, count=count * len(group.readers))

    def _count_refusal(self, group: SubscriberGroup, table: str) -> None:
        """Count the resets for a refused row; a reader that is still joining counts as one."""
        self.context.counts.resets += max(len(group.readers), 1)
        self.context.hooks.reset(table=table, reason=UNSHOWABLE.format(table))

    def _give_up(self, group: SubscriberGroup, reason: str) -> None:
        for reader in group.readers:
            reader.resets += 1
            reader.close(frames.reset(reason))
        self.context.counts.resets += len(group.readers)

    def _everybody(self) -> Iterator[tuple[SubscriberGroup, set[Reader]]]:
        yield from ((group, group.readers) for group in self._groups.values())
        yield from ((it.group, {reader}) for reader, it in self._joining.items())

    def beat(self, position: str | None) -> None:
        """Send a heartbeat after all published events; `position` is the place after them."""
        # The position lies after the events that still wait for the next write.
        self.flush()
        interval = self.context.limits.heartbeat
        plain, placed = frames.heartbeat(interval), frames.heartbeat(interval, position)
        for group in self._groups.values():
            for reader in group.readers:
                reader.push(placed if group.key.with_id else plain)

    def reset(self, reason: str, *, continues: bool = False) -> None:
        """Tell the readers that changes may be missing."""
        self.flush()
        chunk = frames.reset(reason, continues=continues)
        for _, readers in self._everybody():
            for reader in readers:
                reader.resets += 1
                if continues:
                    reader.push(chunk)
                else:
                    reader.close(chunk)
            self.context.counts.resets += len(readers)
        for name in self.exposures:
            self.context.hooks.reset(table=name, reason=reason)

    def close(self, last: bytes) -> None:
        """End all streams with a last frame."""
        self.flush()
        for _, readers in self._everybody():
            for reader in readers:
                reader.close(last)
