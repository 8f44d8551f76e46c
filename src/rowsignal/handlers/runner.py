"""The runner of one partition, active while this process holds its lease."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from rowsignal.change_log import Batch
from rowsignal.change_log.positions import decode
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Change, Reset
from rowsignal.exceptions import RowSignalError
from rowsignal.handlers.attempts import Attempts, ConnectionLostError
from rowsignal.handlers.connection import HandlerConnection
from rowsignal.handlers.consumer import ConsumerReset, Feed
from rowsignal.handlers.leases import LeaseLostError, Partition
from rowsignal.handlers.letters import change_from_json
from rowsignal.handlers.places import Place, place_of, position_of
from rowsignal.hooks import Hooks
from rowsignal.listener import OUTAGES, reconnect_delays
from rowsignal.postgres.statements import query

logger = logging.getLogger("rowsignal.handlers")

CHECKPOINT_INTERVAL = (
    60.0  # seconds between stored positions after unwanted changes, for the retention
)
IDLE_TIMEOUT = 30.0

ResetHook = Callable[[AsyncSession, ConsumerReset], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class HandlerContext:
    """The objects that all handlers of a process share."""

    engine: AsyncEngine
    side_engine: AsyncEngine
    sessions: async_sessionmaker[Any]
    hooks: Hooks
    reset_hooks: Sequence[tuple[str | None, ResetHook]]


class Runner:
    """Reads the log from the stored position and passes its changes to the handler.

    After any error outside the handler it reads the position from the database again, since only
    the database knows what was committed.
    """

    def __init__(self, context: HandlerContext, feed: Feed, partition: Partition) -> None:
        self.partition = partition
        self._context = context
        self._feed = feed
        self._consumer = feed.consumer
        self._connection = HandlerConnection(
            context.side_engine, partition, feed.consumer.retry.timeout
        )
        self._attempts = Attempts(
            feed, partition, self._connection, context.sessions, context.hooks
        )
        self._woken = asyncio.Event()
        self._is_stopping = False
        self._is_due = False
        self._doubt: str | None = None  # reason of a reset that the stored position contradicts
        self._distrusted = 0  # resets in a row
        self._moves = 0
        self._moved_at = time.monotonic()
        self._has_passed = False
        self._used_at = time.monotonic()

    def stop(self) -> None:
        """End after the present change."""
        self._is_stopping = True
        self._woken.set()

    def retry_letters(self) -> None:
        """Handle the due dead letters soon."""
        self._is_due = True
        self._woken.set()

    async def run(self) -> None:
        """Handle changes until stopped, or until another worker takes the partition."""
        delays = reconnect_delays()
        while not self._is_stopping:
            moves = self._moves
            try:
                await self._follow()
            except LeaseLostError:
                logger.info("another worker has taken the partition %s", self.partition)
                return
            except Exception as error:  # noqa: BLE001 -- the task must not end unseen
                self._report(error)
                # Something was handled since the last error, so this one is new: begin with short
                # pauses.
                if self._moves != moves:
                    delays = reconnect_delays()
                await self._pause(next(delays))
            finally:
                # Its transaction must not outlive the lease.
                await self._connection.discard()

    def _report(self, error: Exception) -> None:
        is_outage = isinstance(error, (*OUTAGES, RowSignalError, ConnectionLostError))
        cause = error.__cause__ or error
        logger.warning(
            "consumer %s is interrupted and tries again: %s",
            self.partition,
            cause,
            exc_info=None if is_outage else error,
        )

    async def _follow(self) -> None:
        """Read from the stored position until stopped, or until a `Reset`."""
        async with self._connection.alone() as driver:
            row = await driver.fetchrow(query("consumer_load"), *self.partition.key)
        if row is None:
            raise LeaseLostError
        log = LogTail.of(self._context.engine).log
        now = await log.position()
        if (problem := row["problem"] or self._doubt) is not None:
            await self._reset(problem, now)
            return
        place = Place(row["seen"], row["upto"], row["last_id"])
        async with self._connection.alone() as driver:
            # The incarnation of now: stored places outlive a crash, positions do not.
            after = await position_of(driver, place, decode(now).incarnation)
        tail = LogTail.of(self._context.engine)
        async with (
            tail.subscribe(self._feed.tables.names, after=after) as subscription,
            aclosing(self._items(subscription)) as items,
        ):
            async for item in items:
                if isinstance(item, Reset):
                    self._distrust(item)
                    return
                self._distrusted = 0
                await self._take(item)

    def _distrust(self, reset: Reset) -> None:
        """Count a reset; the first may end with a new read of the stored position."""
        self._distrusted += 1
        # A crash of the server resets readers, while the stored place may still be good.
        self._doubt = reset.reason if self._distrusted > 1 else None
        logger.info(
            "consumer %s reads its stored position again, because the log was reset: %s",
            self.partition,
            reset.reason,
        )

    async def _items(self, subscription: LogSubscription) -> AsyncGenerator[Batch | Reset, None]:
        """Yield the batches of the log; handle dead letters in between."""
        coming: asyncio.Future[Batch | Reset] | None = None
        try:
            while not self._is_stopping:
                if self._is_due:
                    await self._handle_letters()
                # Kept while dead letters are handled: cancelling it could lose a batch.
                coming = coming or asyncio.ensure_future(anext(subscription))
                await self._first_of(coming)
                if coming.done():
                    item, coming = coming.result(), None
                    yield item
        finally:
            if coming is not None:
                coming.cancel()
                await asyncio.gather(coming, return_exceptions=True)

    async def _first_of(self, coming: asyncio.Future[Any]) -> None:
        woken = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({coming, woken}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            woken.cancel()
        self._woken.clear()

    async def _take(self, batch: Batch) -> None:
        """Handle the changes of a batch that belong to this partition, in groups."""
        number = self.partition.number
        wanted = [change for change in batch.changes if self._feed.wants(change, number)]
        size = self._consumer.batch or 1
        for first in range(0, len(wanted), size):
            group = wanted[first : first + size]
            is_last = first + size >= len(wanted)
            await self._handle(group, batch.position if is_last else _position(group[-1]))
            if self._is_stopping:
                return
        if not wanted:
            await self._pass(batch)

    async def _handle(self, changes: Sequence[Change], position: str) -> None:
        """Handle changes until they succeed or attempts run out; try a failed batch one by one."""
        after = await self._place(position)
        while not self._is_stopping:
            error = await self._attempts.handle(changes, after)
            if error is None:
                self._moved()
                return
            failures = await self._attempts.fail(changes, after, error)
            # One bad change must not keep the others of its batch from being handled.
            if len(changes) > 1:
                await self._handle_each(changes, position)
                return
            if failures >= self._consumer.retry.attempts:
                await self._bury(changes[0], after, error, failures)
                return
            pause = self._consumer.retry.pause(failures)
            logger.warning(
                "%s failed (attempt %d, next in %.1f s)",
                self._label(changes[0]),
                failures,
                pause,
                exc_info=error,
            )
            await self._pause(pause)

    async def _place(self, position: str) -> Place:
        async with self._connection.alone() as driver:
            return await place_of(driver, position)

    async def _handle_each(self, changes: Sequence[Change], position: str) -> None:
        for change in changes:
            is_last = change is changes[-1]
            await self._handle([change], position if is_last else _position(change))
            if self._is_stopping:
                return

    async def _bury(self, change: Change, after: Place, error: Exception, failures: int) -> None:
        await self._attempts.bury(change, after, error, failures)
        self._moved()
        label = self._label(change)
        logger.error(
            "%s has become a dead letter after %d attempts", label, failures, exc_info=error
        )

    async def _handle_letters(self) -> None:
        self._is_due = False
        name, number, _ = self.partition.key
        async with self._connection.alone() as driver:
            due = await driver.fetch(query("letters_due"), name, number)
        for row in due:
            if self._is_stopping:
                return
            change = change_from_json(row["change"])
            error = await self._attempts.handle_letter(row["id"], change)
            if error is not None:
                await self._attempts.fail_letter(row["id"], error)
                logger.warning("dead letter %d failed again", row["id"], exc_info=error)

    async def _pass(self, batch: Batch) -> None:
        """Store the position after unwanted changes when the log is quiet."""
        now = time.monotonic()
        is_due = now - self._moved_at >= CHECKPOINT_INTERVAL
        if is_due or (self._has_passed and not batch.changes):
            await self._attempts.skip(await self._place(batch.position))
            self._moved_at, self._has_passed = now, False
        self._has_passed |= bool(batch.changes)
        if now - self._used_at >= IDLE_TIMEOUT:
            await self._connection.discard()

    async def _reset(self, reason: str, now: str) -> None:
        """Call the reset hooks, and go on from now."""
        reset = ConsumerReset(
            consumer=self._consumer.name,
            partition=self.partition.number,
            partitions=self._consumer.partitions,
            reason=f"Changes are missing: {reason}.",
            position=now,
        )
        logger.warning("consumer %s goes on from now: %s", self.partition, reset.reason)
        seen = (await self._place(now)).seen
        hooks = [
            partial(_told, hook, reset)
            for name, hook in self._context.reset_hooks
            if name in (None, self._consumer.name)
        ]
        while not self._is_stopping:
            error = await self._attempts.reset(hooks, seen, reason)
            if error is None:
                self._moved()
                self._context.hooks.reset(table=self._consumer.name, reason=reset.reason)
                return
            failures = await self._attempts.fail((), None, error)
            logger.warning(
                "the reset hook of consumer %s failed and is called again",
                self.partition,
                exc_info=error,
            )
            await self._pause(self._consumer.retry.pause(failures))

    def _moved(self) -> None:
        self._moves += 1
        self._doubt = None
        self._moved_at = self._used_at = time.monotonic()

    def _label(self, change: Change) -> str:
        key = "" if change.key is None else f" {dict(change.key)}"
        return f"{self.partition}: {change.operation} of {change.schema}.{change.table}{key}"

    async def _pause(self, seconds: float) -> None:
        """Wait for a delay, or until the runner is stopped."""
        if self._is_stopping:
            return
        stopping = asyncio.ensure_future(self._woken.wait())
        try:
            await asyncio.wait({stopping}, timeout=seconds)
        finally:
            stopping.cancel()
        if not self._is_stopping:
            self._woken.clear()


async def _told(hook: ResetHook, reset: ConsumerReset, session: AsyncSession) -> None:
    await hook(session, reset)


def _position(change: Change) -> str:
    if change.position is None:
        raise ValueError(f"{change} has no position, so it is not of the log.")
    return change.position
