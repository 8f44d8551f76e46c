"""The fan-out in one process: each event is decided and encoded once for all who see the same."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from rowsignal.exceptions import ReaderLimitError
from rowsignal.hooks import Hooks
from rowsignal.sse import frames
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.views import Event, UnknownHistoryError
from rowsignal.sse.delivery.audiences import Audience, AudienceKey, Joiner
from rowsignal.sse.delivery.buffers import Reader
from rowsignal.sse.limits import Limits

logger = logging.getLogger("rowsignal.sse")

UNKNOWN = (
    "It is not known which rows this reader has seen. Log the filter's columns to make such a"
    " stream resumable."
)
UNSHOWABLE = "A row could not be shown as the application wants it."
MAX_HELD = 20_000


@dataclass(slots=True)
class Counts:
    """What a fan-out has done since it was made."""

    delivered: int = 0
    bytes: int = 0
    resets: int = 0
    overflows: int = 0
    changes: dict[str, Counter[str]] = field(default_factory=dict)
    last_change: dict[str, float] = field(default_factory=dict)


class FanOut:
    """Holds the readers and writes to them: at once when idle, once a tick under load."""

    def __init__(
        self, exposures: Mapping[str, Exposure], limits: Limits, hooks: Hooks | None = None
    ) -> None:
        self.exposures = exposures
        self.limits = limits
        self.hooks = hooks or Hooks()
        self.counts = Counts()
        self.is_closing = False
        self._audiences: dict[AudienceKey, Audience] = {}
        self._principals: Counter[str] = Counter()
        self._joiners: dict[Reader, Joiner] = {}
        self._waiting: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        self._flushed_at = 0.0
        self.flushed: Callable[[Sequence[Event]], None] = lambda _: None

    @property
    def readers(self) -> int:
        """How many streams are open."""
        return self._principals.total()

    def readers_of(self, table: str) -> int:
        """Return how many open streams show a table."""
        joining = sum(table in joiner.audience.lenses for joiner in self._joiners.values())
        return joining + sum(
            len(audience.readers)
            for audience in self._audiences.values()
            if table in audience.lenses
        )

    def columns_of(self, table: str) -> frozenset[str]:
        """Return the columns of a table that filters of open streams look at."""
        audiences = [*self._audiences.values(), *(it.audience for it in self._joiners.values())]
        lenses = [it.lenses[table] for it in audiences if table in it.lenses]
        return frozenset().union(*(lens.filter_columns for lens in lenses))

    def admit(self, principal: str) -> None:
        """Count one more stream; raise `ReaderLimitError` when there are too many."""
        if self.is_closing:
            raise ReaderLimitError("The service is stopping; come back in a moment.")
        if self.readers >= self.limits.readers:
            raise ReaderLimitError(f"All {self.limits.readers} streams are taken; try again later.")
        if self._principals[principal] >= self.limits.readers_each:
            raise ReaderLimitError(
                f"You have {self.limits.readers_each} streams open, which is as many as one may"
                " have; close some, or ask for several tables in one.",
                is_own=True,
            )
        self._principals[principal] += 1

    def dismiss(self, principal: str) -> None:
        """Count one stream less."""
        self._principals[principal] -= 1
        if self._principals[principal] <= 0:
            del self._principals[principal]

    def private(self, key: AudienceKey) -> Audience:
        """Return an audience for one reader who is still catching up."""
        return Audience(key, self.exposures, self.limits.tracked)

    def hold(self, reader: Reader, audience: Audience) -> Joiner:
        """Keep what is published from now on for a reader who has to catch up first."""
        self.flush()
        joiner = self._joiners[reader] = Joiner(reader, audience)
        return joiner

    def let_go(self, joiner: Joiner) -> None:
        """Hold nothing any more: the reader is too far behind to join yet."""
        self._joiners.pop(joiner.reader, None)

    def attach(self, joiner: Joiner) -> None:
        """Show a reader what was held, and then all that is published."""
        self.flush()
        del self._joiners[joiner.reader]
        audience = joiner.audience
        audience.readers = {joiner.reader}
        self._show(audience, joiner.events)
        shared = self._audiences.setdefault(audience.key, audience)
        if shared is not audience:
            shared.remember(audience)
            shared.readers.add(joiner.reader)

    def detach(self, reader: Reader, key: AudienceKey) -> None:
        """Forget a reader; its audience goes with the last one."""
        self._joiners.pop(reader, None)
        audience = self._audiences.get(key)
        if audience is not None:
            audience.readers.discard(reader)
            if not audience.readers:
                del self._audiences[key]

    def publish(self, events: Sequence[Event]) -> None:
        """Take committed changes, in order."""
        for event in events:
            name = event.exposure.name
            self.counts.changes.setdefault(name, Counter())[str(event.operation)] += 1
            self.counts.last_change[name] = time.time()
        self._waiting.extend(events)
        if self._timer is None:
            self._flush_or_wait()

    def _flush_or_wait(self) -> None:
        loop = asyncio.get_running_loop()
        due = self._flushed_at + self.limits.tick
        if loop.time() >= due:
            self.flush()
        else:
            self._timer = loop.call_at(due, self.flush)

    def flush(self) -> None:
        """Write what is waiting to all readers."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        events, self._waiting = self._waiting, []
        if events:
            self._flushed_at = asyncio.get_running_loop().time()
            for audience in list(self._audiences.values()):
                self._show(audience, events)
            for joiner in self._joiners.values():
                self._keep(joiner, events)
            self.flushed(events)

    def _keep(self, joiner: Joiner, events: Sequence[Event]) -> None:
        joiner.events.extend(
            event for event in events if event.exposure.name in joiner.audience.lenses
        )
        if len(joiner.events) > MAX_HELD:
            joiner.events.clear()
            joiner.reader.close(frames.reset("Too much changed while this reader was catching up."))

    def _show(self, audience: Audience, events: Sequence[Event]) -> None:
        try:
            rows = audience.show(events)
        except UnknownHistoryError:
            self._give_up(audience, UNKNOWN)
            return
        except Exception:  # the application's schema has the last word, and may refuse a row
            logger.exception("a row could not be shown")
            self._give_up(audience, UNSHOWABLE)
            return
        if not rows:
            return
        joined = b"".join(chunk for _, chunk in rows)
        for reader in audience.readers:
            reader.push(joined, rows)
        lost = {reader for reader in audience.readers if reader.overflowed}
        audience.readers -= lost
        self.counts.overflows += len(lost)
        self.counts.delivered += len(rows) * len(audience.readers)
        self.counts.bytes += len(joined) * len(audience.readers)
        for name in {about[0] for about, _ in rows}:
            count = sum(about[0] == name for about, _ in rows)
            self.hooks.delivered(table=name, count=count * len(audience.readers))

    def _give_up(self, audience: Audience, reason: str) -> None:
        for reader in audience.readers:
            reader.close(frames.reset(reason))
        self.counts.resets += len(audience.readers)

    def _groups(self) -> list[tuple[Audience, set[Reader]]]:
        shared = [(audience, audience.readers) for audience in self._audiences.values()]
        return shared + [(joiner.audience, {reader}) for reader, joiner in self._joiners.items()]

    def beat(self, position: str | None) -> None:
        """Send a heartbeat after everything that was published; `position` is how far that is."""
        self.flush()
        plain = frames.heartbeat(self.limits.heartbeat)
        placed = frames.heartbeat(self.limits.heartbeat, position)
        for audience in self._audiences.values():
            for reader in audience.readers:
                reader.push(placed if audience.key.with_id else plain)

    def reset(self, reason: str, tables: Iterable[str], *, continues: bool = False) -> None:
        """Tell the readers of some tables that changes may be missing."""
        self.flush()
        names = set(tables)
        chunk = frames.reset(reason, continues=continues)
        for audience, readers in self._groups():
            if not names.isdisjoint(audience.lenses):
                for reader in readers:
                    if continues:
                        reader.push(chunk)
                    else:
                        reader.close(chunk)
                self.counts.resets += len(readers)
        for name in names:
            self.hooks.reset(table=name, reason=reason)

    def close(self) -> None:
        """Say goodbye to every reader and admit nobody any more."""
        self.is_closing = True
        self.flush()
        for _, readers in self._groups():
            for reader in readers:
                reader.close(frames.bye("shutdown", self.limits.retry))
