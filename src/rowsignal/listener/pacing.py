"""Pacing: a table is watched by notifications while it is quiet, and polled while it is busy.

Notifications cost the writers, reads cost this process. So a table is armed while it is quiet and
polled while it is busy, as network drivers replace interrupts by polling. Waits for rows and the
change log use the same machine.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rowsignal.hooks import Hooks, Mode
from rowsignal.listener.hints import Lease, Target
from rowsignal.postgres.errors import describe, is_hopeless

logger = logging.getLogger("rowsignal.arming")

CheckResult = Literal["altered", "written", "unchanged"]

LONGEST_ERROR_PAUSE = 1.0
RELAPSE = 1.0  # seconds after arming within which too many notifications count as a relapse


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """The intervals of reads, in seconds, and the limits of a busy table.

    `drain_interval` and `longest_drain_interval` bound the growing interval of reads while earlier
    writers are drained; `safety` is the interval of reads while armed, `recheck` that of the check
    for new triggers. Above `busy_rate` notifying transactions a second the subject is busy: it is
    read every `busy_interval` seconds instead, but for at most `share_of_time` of the time and with
    pauses of at most `longest_pause`, until nothing has changed for the cooldown. The cooldown is
    `cooldown` seconds at first and grows to `longest_cooldown` after relapses. `idle_timeout` is
    how long a table without waits is kept. Waits for a row end when its table has been `missing`
    for so long.
    """

    drain_interval: float = 0.02
    longest_drain_interval: float = 0.5
    safety: float = 30.0
    recheck: float = 5.0
    busy_rate: float = 50.0
    busy_interval: float = 0.025
    share_of_time: float = 0.1
    longest_pause: float = 0.5
    cooldown: float = 0.25
    longest_cooldown: float = 30.0
    idle_timeout: float = 3.0
    query_timeout: float = 5.0
    missing: float = 10.0


class Rate:
    """Transactions that notified, as a level that drains by `limit` a second."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self._level, self._at = 0.0, time.monotonic()

    def add(self, count: int) -> None:
        """Count transactions that notified."""
        now = time.monotonic()
        self._level = max(0.0, self._level - (now - self._at) * self._limit) + count
        self._at = now

    @property
    def is_high(self) -> bool:
        """Tell whether the level has reached the limit of one second."""
        return self._level >= self._limit


class Arming(Protocol):
    """Takes leases; the listener implements it."""

    hooks: Hooks

    async def arm(self, target: Target) -> Lease | None:
        """Make hints of a target arrive; return None where they do not."""


class Paced(Protocol):
    """The subject of a `Pacer`. Only `read`, `targets`, `check` and `writers` may wait."""

    @property
    def label(self) -> str:
        """Return the name for logs and metrics."""

    @property
    def interval(self) -> float:
        """Return the polling interval in seconds."""

    @property
    def is_streaming(self) -> bool:
        """Tell whether a stream needs each notification, so that reads cannot replace them."""

    async def targets(self) -> Sequence[Target] | None:
        """Return what to arm; None if hints would not report every change."""

    async def check(self) -> CheckResult:
        """Compare the armed subject with the last check: altered, written to or unchanged.

        It has been altered if `targets` would return another result than last time.
        """

    async def writers(self) -> frozenset[str]:
        """Return the open transactions whose triggers may have run before the arming."""

    async def read(self) -> bool:
        """Read the subject; tell whether it has changed."""

    def mode_changed(self, mode: Mode) -> None:
        """Handle a change of mode."""


class Pacer:
    """Chooses the mode of one subject and reads it accordingly.

    `mode` is `starting`, `settling` (armed, and reading until earlier writers have ended), `armed`,
    `busy` (polling because the subject notified too often) or `polling` (notifications do not
    arrive). Each mode begins with a read, so no change is lost between two modes.
    """

    def __init__(self, listener: Arming, subject: Paced, pace: Pace) -> None:
        self.mode: Mode = "starting"
        self.rate = Rate(pace.busy_rate)
        self._listener = listener
        self._subject = subject
        self._pace = pace
        self._cooldown = pace.cooldown
        self._leases: list[Lease] = []
        self._read_due = math.inf
        self._event = asyncio.Event()
        self._must_think = False
        self._must_read = False
        self._failure = ""

    @property
    def is_armed(self) -> bool:
        """Tell whether every change from now on is reported, or its loss is."""
        return self.mode == "armed" and bool(self._leases) and not self._must_think

    @property
    def is_notifying(self) -> bool:
        """Tell whether writers notify; transactions that began earlier may not."""
        return self.mode in {"settling", "armed"}

    def wake(self) -> None:
        """Choose the mode again: the listener's state or the subject's needs have changed."""
        self._must_think = True
        self._event.set()

    def request_read(self) -> None:
        """Read soon, in any mode."""
        self._must_read = True
        self._event.set()

    def notified(self, transactions: int) -> None:
        """Count transactions that notified because of the arming."""
        self.rate.add(transactions)
        if self._leases and self.rate.is_high and not self._subject.is_streaming:
            self.wake()  # without leases these are late notifications: it is disarmed already

    async def run(self) -> None:
        """Read at the pace of the mode until cancelled; errors do not end the loop."""
        try:
            while True:
                try:
                    await self._round()
                except Exception as error:  # noqa: BLE001 -- no task ends unseen: it is told
                    self._tell(error)
                    await self._disarm()
                    await self._enter_after_failure()
        finally:
            await self._disarm()

    async def _round(self) -> None:
        """Run the mode that fits; return when the mode must be chosen again."""
        self._must_think = False
        self.rate.clear()
        targets = await self._subject.targets()
        if targets is None or not await self._arm(targets):
            await self._disarm()
            await self._poll()
            return
        armed_at = time.monotonic()
        await self._drain_writers()
        await self._stay_armed()
        is_busy = self.rate.is_high
        await self._disarm()
        if is_busy:
            self._lengthen_cooldown(since=armed_at)
            await self._stay_busy()

    async def _arm(self, targets: Sequence[Target]) -> bool:
        for target in targets:
            lease = await self._listener.arm(target)
            if lease is None:
                return False
            self._leases.append(lease)
        return True

    async def _disarm(self) -> None:
        leases, self._leases = self._leases, []
        for lease in leases:
            try:
                await lease.release()
            except Exception as error:  # noqa: BLE001 -- the lock has gone with its connection
                logger.debug("%s: %s", self._subject.label, describe(error))

    async def _drain_writers(self) -> None:
        """Read until every transaction whose triggers may have run before the arming has ended."""
        self._enter("settling")
        delay = self._pace.drain_interval
        writers = await self._subject.writers()
        await self._read()
        while writers and not await self._woken_within(min(delay, self._subject.interval)):
            delay = min(delay * 1.5, self._pace.longest_drain_interval)
            writers &= (
                await self._subject.writers()
            )  # before the read: transactions that have ended are visible to it
            await self._read()

    async def _stay_armed(self) -> None:
        self._enter("armed")
        safe_until = time.monotonic() + self._pace.safety * _spread()
        while not await self._woken_within(safe_until - time.monotonic()):
            if time.monotonic() >= safe_until:
                result = await self._subject.check()
                if result == "altered":
                    return
                safe_until = time.monotonic() + self._pace.safety * _spread()
                if result == "unchanged" and not self._must_read:
                    continue
            await self._read()

    def _lengthen_cooldown(self, *, since: float) -> None:
        is_relapse = time.monotonic() - since < RELAPSE + self._pace.cooldown
        longer = min(self._cooldown * 2, self._pace.longest_cooldown)
        self._cooldown = longer if is_relapse else self._pace.cooldown

    async def _stay_busy(self) -> None:
        """Poll in short intervals until nothing has changed for the cooldown.

        Reads cannot replace the notifications that a stream needs: for a stream, arm at once.
        """
        self._enter("busy")
        self._must_think = False
        until = time.monotonic() + self._cooldown
        while not self._subject.is_streaming and (began := time.monotonic()) < until:
            has_changed = await self._read()
            now = time.monotonic()
            until = now + self._cooldown if has_changed else until
            if await self._woken_within(self._pause(now - began)):
                return

    def _pause(self, cost: float) -> float:
        """Return the seconds until the next read, longer after a slow read."""
        wanted = max(self._pace.busy_interval, cost / self._pace.share_of_time)
        return min(wanted, self._pace.longest_pause, self._subject.interval)

    async def _poll(self) -> None:
        """Poll in the subject's own interval until notifications may arrive."""
        if self.mode not in {"starting", "polling"}:  # notifications may be lost
            self._read_due = 0.0
        self._enter("polling")
        until = time.monotonic() + self._pace.recheck * _spread()
        while (now := time.monotonic()) < until:
            self._read_due = min(self._read_due, now + self._subject.interval)
            if await self._woken_within(min(until, self._read_due) - now):
                return
            if time.monotonic() >= self._read_due or self._must_read:
                self._read_due = math.inf
                await self._read()

    async def _read(self) -> bool:
        self._must_read = False
        return await self._subject.read()

    async def _woken_within(self, seconds: float) -> bool:
        """Sleep; return early for a requested read, or with True to choose the mode again."""
        if self._must_think or self._must_read:
            return self._must_think
        self._event.clear()
        try:
            async with asyncio.timeout(max(0.0, seconds)):
                await self._event.wait()
        except TimeoutError:
            return False
        return self._must_think

    def _enter(self, mode: Mode) -> None:
        if mode != self.mode:
            self.mode = mode
            self._subject.mode_changed(mode)

    async def _enter_after_failure(self) -> None:
        try:
            self._enter("polling")
        except Exception as error:  # noqa: BLE001 -- told, and no reason to stop
            self._tell(error)
        await asyncio.sleep(min(self._subject.interval, LONGEST_ERROR_PAUSE))

    def _tell(self, error: Exception) -> None:
        """Log an error once; an outage of the database is logged as information."""
        label, cause = self._subject.label, describe(error)
        if not is_hopeless(error):
            logger.info("%s: the read failed and is repeated soon: %s", label, cause)
            return
        if cause != self._failure:
            logger.error("%s: watching failed unexpectedly and starts again: %s", label, cause)
            logger.debug("%s: traceback of the failure", label, exc_info=error)
        self._failure = cause
        self._listener.hooks.task_restarted(task=label, reason=cause)


def _spread() -> float:
    return random.uniform(0.8, 1.2)  # noqa: S311 -- keeps many processes from reading at once
