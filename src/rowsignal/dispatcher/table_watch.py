"""How changes of one table reach this process: by notification while it is quiet, else by looks.

Being notified costs the writers of a table; looking costs us. A table is armed while it is quiet,
and looked at in intervals while it is busy, as network drivers turn interrupts into polling.
"""

import asyncio
import logging
import math
import random
import time
from collections.abc import Iterable
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.listener import OUTAGES, Lease, Listener
from rowsignal.listener.pacing import Pace, Rate
from rowsignal.payload import LOG_BUCKET, Hint
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import Capture, captures
from rowsignal.triggers.settings import TableName

logger = logging.getLogger("rowsignal.arming")


class Audience(Protocol):
    """Whoever waits for rows of the table."""

    @property
    def interval(self) -> float:
        """Return the seconds between looks that suit the most impatient one."""

    @property
    def is_streaming(self) -> bool:
        """Tell whether somebody reads the notifications themselves, and so needs them all."""

    def is_content_with(self, columns: tuple[str, ...] | None) -> bool:
        """Tell whether hints for these columns (None: all) are all that anybody waits for."""

    async def look(self) -> bool:
        """Look at every waited-for row; tell whether one had changed."""

    def mode_changed(self, mode: str) -> None:
        """Hear how the table is watched from now on."""


class TableWatch:
    """One watched table, and how its changes come.

    `mode` is `starting`, `settling` (armed, and looking until writers from before are gone),
    `armed`, `busy` (looked at because it notified too often) or `polling` (notifications do not
    come).
    """

    def __init__(self, name: TableName, listener: Listener, audience: Audience, pace: Pace) -> None:
        self.name = name
        self.mode = "starting"
        self.capture: Capture | None = None
        self._listener = listener
        self._audience = audience
        self._pace = pace
        self._rate = Rate(pace.busy_rate)
        self._stay = pace.quiet
        self._leases: list[Lease] = []
        self._look_due = math.inf
        self._stirred = asyncio.Event()

    @property
    def label(self) -> str:
        """Return the table's name for people and metrics."""
        return ".".join(part for part in self.name if part)

    @property
    def tokens(self) -> frozenset[str]:
        """Return what marks the hints of this table."""
        channels = self.capture.channels if self.capture else ()
        return frozenset(token for token, _ in channels)

    @property
    def hinted_key(self) -> tuple[str, ...] | None:
        """Return the columns of the key that hints carry; None where there are no hints."""
        capture = self.capture
        if capture is None or capture.kind != "hint" or not capture.is_notifying:
            return None
        if not capture.has_plain_key:
            return None
        return capture.key_columns

    @property
    def is_logged(self) -> bool:
        """Tell whether the table's changes are told by the wake-up of the change log."""
        return self.capture is not None and self.capture.kind == "log"

    @property
    def is_armed(self) -> bool:
        """Tell whether every change from now on will be told, or that it was not."""
        return self.mode == "armed" and bool(self._leases) and not self._stirred.is_set()

    @property
    def is_notifying(self) -> bool:
        """Tell whether writers notify, if not yet all of those from before."""
        return self.mode in {"settling", "armed"}

    def hinted(self, hints: Iterable[Hint]) -> None:
        """Count hints that arrived for the table."""
        self.woken(len({hint.transaction_id for hint in hints}))

    def woken(self, transactions: int) -> None:
        """Count transactions that notified because the table was armed."""
        self._rate.add(transactions)
        if self._leases and self._rate.is_high and not self._audience.is_streaming:
            self._stirred.set()  # without leases these are stragglers: it is disarmed already

    def stir(self) -> None:
        """Take notice: the listener's state has changed."""
        self._stirred.set()

    def joined(self, columns: frozenset[str] | None, *, is_hurried: bool) -> None:
        """Take notice of a new wait for some columns, which may be less patient than the others."""
        if (is_hurried and self.mode == "polling") or not self._tells_of(columns):
            self._stirred.set()

    def _tells_of(self, columns: frozenset[str] | None) -> bool:
        told = self.capture.columns if self.capture else None
        return told is None or (columns is not None and columns <= set(told))

    async def run(self) -> None:
        """Keep the audience informed until cancelled."""
        while True:
            try:
                await self._round()
            except OUTAGES as error:
                logger.info("%s: looking again soon: %s", self.label, error)
                self._enter("polling")
                await self._stirred_within(min(self._audience.interval, 1.0))
            finally:
                await self._disarm()

    async def _round(self) -> None:
        """Do what fits the table and the listener now; return when that is to be asked again."""
        self._stirred.clear()
        self._rate.clear()
        self.capture = await self._ask_catalogue()
        if not self._is_enough(self.capture) or not await self._arm(self.capture):
            await self._poll()
            return
        armed_at = time.monotonic()
        await self._settle(self.capture)
        await self._stay_armed(self.capture)
        if self._rate.is_high:
            await self._disarm()
            self._lengthen_stay(since=armed_at)
            await self._stay_busy()

    def _is_enough(self, capture: Capture | None) -> bool:
        return (
            capture is not None
            and capture.is_notifying
            and self._audience.is_content_with(capture.columns)
        )

    async def _arm(self, capture: Capture) -> bool:
        for bucket in _buckets(capture):
            lease = await self._listener.arm(bucket)
            if lease is None:
                return False
            self._leases.append(lease)
        return True

    async def _disarm(self) -> None:
        leases, self._leases = self._leases, []
        for lease in leases:
            try:
                await lease.release()
            except OUTAGES as error:  # the lock has gone with its connection
                logger.debug("%s: %s", self.label, error)

    async def _settle(self, capture: Capture) -> None:
        """Look until every transaction is over whose triggers may have run before the arming."""
        self._enter("settling")
        delay = self._pace.settle
        writers = await self._writers(capture)
        await self._audience.look()
        while writers and not await self._stirred_within(delay):
            delay = min(delay * 1.5, self._pace.settle_longest)
            writers &= await self._writers(capture)  # before the look: who is gone has committed
            await self._audience.look()

    async def _stay_armed(self, capture: Capture) -> None:
        self._enter("armed")
        while not await self._stirred_within(self._pace.safety * _spread()):
            if await self._ask_catalogue() != capture:
                return
            await self._audience.look()

    def _lengthen_stay(self, *, since: float) -> None:
        is_relapse = time.monotonic() - since < 1.0
        longer = min(self._stay * 2, self._pace.longest_stay)
        self._stay = longer if is_relapse else self._pace.quiet

    async def _stay_busy(self) -> None:
        """Look in short intervals until nothing waited for has changed for a while.

        Looks show nothing to those who read notifications: for them it is armed again at once.
        """
        self._enter("busy")
        self._stirred.clear()
        until = time.monotonic() + self._stay
        while not self._audience.is_streaming and (began := time.monotonic()) < until:
            has_changed = await self._audience.look()
            now = time.monotonic()
            until = now + self._stay if has_changed else until
            cost = (now - began) / self._pace.share_of_time
            if await self._stirred_within(max(self._pace.busy_look, cost)):
                return

    async def _poll(self) -> None:
        """Look in the audience's own interval until the table may be able to notify."""
        if self.mode not in {"starting", "polling"}:  # what was to be told may be lost
            self._look_due = 0.0
        self._enter("polling")
        until = time.monotonic() + self._pace.recheck * _spread()
        while (now := time.monotonic()) < until:
            self._look_due = min(self._look_due, now + self._audience.interval)
            if await self._stirred_within(max(0.0, min(until, self._look_due) - now)):
                return
            if time.monotonic() >= self._look_due:
                self._look_due = math.inf
                await self._audience.look()

    async def _stirred_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        except TimeoutError:
            return False
        return True

    async def _ask_catalogue(self) -> Capture:
        async def work(connection: AsyncConnection) -> list[Capture]:
            return await captures(connection, [self.name])

        found = await self._listener.own.run(work, timeout=self._pace.answer)
        return found[0]

    async def _writers(self, capture: Capture) -> frozenset[str]:
        async def work(connection: AsyncConnection) -> frozenset[str]:
            relations = list(capture.relations)
            rows = await connection.exec_driver_sql(query("writers_in_flight"), (relations,))
            return frozenset(rows.scalars())

        return await self._listener.own.run(work, timeout=self._pace.answer)

    def _enter(self, mode: str) -> None:
        if mode != self.mode:
            self.mode = mode
            self._audience.mode_changed(mode)


def _buckets(capture: Capture) -> list[int]:
    if capture.kind == "log":
        return [LOG_BUCKET]
    return sorted({bucket for _, bucket in capture.channels})


def _spread() -> float:
    return random.uniform(0.8, 1.2)  # noqa: S311 -- keeps many processes from looking at once
