"""The log tail: reads the change log once for all subscribers in a process.

It waits for a notification while the log is quiet and polls while the log is busy, so that writers
of a busy log need not notify. A process that reads the log also prunes it.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.batches import Batch
from rowsignal.change_log.log import ChangeLog
from rowsignal.change_log.pruning import keep_pruned
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.changes import Reset
from rowsignal.hooks import Mode
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import Listener
from rowsignal.listener.hints import RelayedLog, Target
from rowsignal.listener.pacing import CheckResult, Pace, Pacer
from rowsignal.payload import LOG_BUCKET, LOG_CHANNEL, Hint

logger = logging.getLogger("rowsignal.log_tail")

SLOWEST_POLL = 0.5
LONGEST_PAUSE = 0.1  # between reads: a slow read means that the machine or the log is busy
HEAVY_SHARE = 0.1  # of more than a page: subscriptions of a table with more read alone
EMPTY_PACE = 1.0  # interval of empty batches


class LogTail:
    """Follows the change log of one database for all readers in this event loop.

    A `Pacer` decides when to read; `mode` is its mode, or `stopped`.
    """

    def __init__(
        self, listener: Listener, pace: Pace | None = None, *, safety: float = 5.0
    ) -> None:
        """Follow through a listener; an armed log is read every `safety` seconds, too."""
        self.label = "rowsignal.change"
        self.position = ""
        self.log = ChangeLog(listener.engine, listener.read_url)
        self._listener = listener
        self._pace = replace(pace or Pace(), safety=safety, longest_pause=LONGEST_PAUSE)
        self.interval = self._pace.busy_interval
        self.is_streaming = False
        self._pacer = Pacer(listener, self, self._pace)
        self._is_running = False
        self._is_ending = (
            False  # cancelled; `Task.cancelling` also counts time-outs within the task
        )
        self._subscribers: set[LogSubscription] = set()
        self._tables: Counter[QualifiedName] = Counter()
        self._read_requests: list[tuple[asyncio.Future[str], LogSubscription | None]] = []
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self._retirement: asyncio.TimerHandle | None = None
        self._told_at = 0.0

    @classmethod
    def of(cls, engine: AsyncEngine) -> "LogTail":
        """Return the running event loop's tail for an engine."""
        listener = Listener.of(engine)
        return listener.companion(cls, lambda: cls(listener))

    @property
    def mode(self) -> Mode:
        """Return the mode in which the log is followed."""
        return self._pacer.mode if self._is_running else "stopped"

    @property
    def subscribers(self) -> int:
        """Return the number of subscriptions."""
        return len(self._subscribers)

    @asynccontextmanager
    async def subscribe(
        self, tables: Iterable[QualifiedName], *, after: str | None = None, limit: int = 10_000
    ) -> AsyncIterator[LogSubscription]:
        """Read the changes of (schema, table) pairs, from a position on or from now.

        The subscription yields `Batch | Reset`, with an empty batch now and then. It holds up to
        `limit` changes; a slower reader continues from the log itself until it has caught up, and
        loses nothing. Raises `PositionError` for a malformed position, and the errors of reading.
        """
        subscription = LogSubscription(self, tuple(tables), after, limit)
        if self._listener.is_relayed and not self._tables.keys() >= set(subscription.tables):
            self._pacer.wake()  # each table has a subject of its own, the log of LISTEN one bucket
        self._tables.update(subscription.tables)
        try:
            await self._start()
            await subscription.begin()
            yield subscription
        finally:
            self.detach(subscription)
            self._tables.subtract(subscription.tables)
            self._tables += Counter()  # drops tables without readers
            self._retire_soon()

    async def catch_up(self) -> str:
        """Read the log once more, beginning after this call; return the position reached."""
        return await self._ask(None)

    async def attach(self, subscription: LogSubscription) -> str:
        """Push every batch after the returned position to the subscription."""
        return await self._ask(subscription)

    def detach(self, subscription: LogSubscription) -> None:
        """Stop pushing to the subscription."""
        self._subscribers.discard(subscription)

    def connected(self) -> None:
        """Arm: notifications arrive."""
        self._pacer.wake()

    def degraded(self) -> None:
        """Poll: notifications no longer arrive."""
        self._pacer.wake()

    def received(self, channel: str, payload: str) -> None:  # noqa: ARG002 -- it is a mere wake-up
        """Read the log."""
        if channel == LOG_CHANNEL:
            self._pacer.notified(1)
            self._pacer.request_read()

    def hinted(self, hint: Hint) -> None:
        """Do nothing: the tail is armed for wake-ups, and hints are of waits."""

    def missed(self) -> None:
        """Read the log."""
        self._pacer.request_read()

    async def stopped(self) -> None:
        """Handle the end of the listener: poll while there are readers, else end now."""
        if not self._tables:
            await self.aclose()

    async def _ask(self, subscription: LogSubscription | None) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._read_requests.append((future, subscription))
        self._pacer.request_read()
        return await future

    async def _start(self) -> None:
        async with self._starting:
            if self._retirement is not None:
                self._retirement.cancel()
                self._retirement = None
            # The task that ends closes the connections of the log, also those of a new start.
            if self._task is not None and self._is_ending:
                await asyncio.wait([self._task])
            if self._task is None or self._task.done():
                self.position = await self._first_position()
                self._listener.attach(self)
                self._is_running, self._is_ending = True, False
                self._pacer = Pacer(self._listener, self, self._pace)
                self._task = asyncio.create_task(self._run(), name="rowsignal log tail")
                self._task.add_done_callback(self._ended)

    async def _first_position(self) -> str:
        try:
            return await self.log.position()
        except BaseException:
            await asyncio.shield(self.log.aclose())  # there is no task yet that would do it
            raise

    def _retire_soon(self) -> None:
        if not self._tables and self._retirement is None:
            loop = asyncio.get_running_loop()
            self._retirement = loop.call_later(self._pace.idle_timeout, self._retire)

    def _retire(self) -> None:
        self._retirement = None
        self._end()

    def _end(self) -> None:
        if self._task is not None and not self._is_ending:
            self._is_ending = True
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Fail the subscriptions and requests that wait for the ended task."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            logger.error("the log tail has failed", exc_info=failure)
        error = failure or RuntimeError("The change log is no longer followed: it was closed.")
        for subscription in tuple(self._subscribers):
            subscription.fail(error)
        requests, self._read_requests = self._read_requests, []
        for future, _ in requests:
            if not future.done():
                future.set_exception(error)

    async def aclose(self) -> None:
        """Stop following; remaining readers get an error."""
        self._end()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        await self.log.aclose()  # a task that was cancelled before its start has closed nothing

    async def close_unused(self) -> None:
        """Close the connections of a log that was read but is not followed."""
        if self._task is None or self._task.done():
            await self.log.aclose()

    async def _run(self) -> None:
        pruning = asyncio.create_task(
            keep_pruned(self._listener.engine, self._listener.read_url), name="rowsignal pruning"
        )
        try:
            await self._pacer.run()
        finally:
            self._is_running = False
            self._listener.hooks.mode_changed(table=self.label, mode="stopped")
            pruning.cancel()
            await asyncio.gather(pruning, return_exceptions=True)
            try:
                await asyncio.shield(self.log.aclose())
            finally:
                self._listener.detach(self)  # last: the end of the listener waits for all of this

    async def targets(self) -> Sequence[Target] | None:
        """Return the bucket of the log; with a relay the followed tables, if it carries them all.

        A relay that reads the WAL may be ahead of the log's triggers, but never of their commit.
        """
        if not self._listener.is_relayed:
            return [LOG_BUCKET]
        tables = tuple(sorted(self._tables))
        carried = [await self._listener.relayed(name) for name in tables]
        return [RelayedLog(tables)] if all(carried) else None

    async def check(self) -> CheckResult:
        """Return "written": a read of the log costs no more than the question."""
        return "written"

    async def writers(self) -> frozenset[str]:
        """Return the open transactions that have written to the log; a relay reports them all."""
        if self._listener.is_relayed:
            return self._listener.late_writers()
        return await self.log.writers()

    def mode_changed(self, mode: Mode) -> None:
        """Pass the mode on to the hooks."""
        self._listener.hooks.mode_changed(table=self.label, mode=mode)

    async def read(self) -> bool:
        """Read up to now and push it to the subscriptions; tell whether there were changes."""
        has_changed = await self._read()
        # While the log is polled and quiet, it is read ever more rarely.
        slower = min(self.interval * 1.5, SLOWEST_POLL)
        self.interval = self._pace.busy_interval if has_changed else slower
        return has_changed

    async def _read(self) -> bool:
        """Read up to now and push it to the subscriptions; tell whether there were changes."""
        requests, self._read_requests = self._read_requests, []
        try:
            has_changed = await self._read_all()
        except BaseException:
            # Their readers still wait for a position: the next read answers them.
            self._read_requests += requests
            raise
        # No other task runs between the read and this: what is pushed next follows this position.
        for future, subscription in requests:
            if not future.done():
                future.set_result(self.position)
                if subscription is not None:
                    self._subscribers.add(subscription)
                    subscription.attached(self.position)
        return has_changed

    async def _read_all(self) -> bool:
        """Read for all subscriptions; those of tables with too many changes read alone.

        So a huge transaction in one table delays no reader of another table.
        """
        has_changed = False
        while True:
            tables = {name for it in self._subscribers for name in it.tables}
            item = await self.log.glance(self.position, sorted(tables))
            if not isinstance(item, Counter):
                return self._publish(item) or has_changed
            has_changed = True
            # Without these readers the next read leaves their tables out, and comes to an end.
            self._let_lag(_heavy(item))

    def _let_lag(self, tables: set[QualifiedName]) -> None:
        for subscription in tuple(self._subscribers):
            if not tables.isdisjoint(subscription.tables):
                self.detach(subscription)
                subscription.lag(self.position)

    def _publish(self, item: Batch | Reset) -> bool:
        self.position = item.position or self.position
        has_changed = isinstance(item, Reset) or bool(item.changes)
        now = time.monotonic()
        if has_changed or now - self._told_at >= EMPTY_PACE:
            self._told_at = now
            for subscription in tuple(self._subscribers):
                subscription.push(item)
        return has_changed


def _heavy(counts: Counter[QualifiedName]) -> set[QualifiedName]:
    """Return the tables with a large share of the counted changes."""
    return {name for name, count in counts.items() if count >= counts.total() * HEAVY_SHARE}
