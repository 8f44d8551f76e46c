"""The readers of each principal, counted in NATS over all processes."""

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from rowsignal.nats.buckets import Bucket, Connection
from rowsignal.nats.connection import OUTAGES
from rowsignal.nats.subjects import tokens

logger = logging.getLogger("rowsignal.limits")

BUCKET = "rowsignal-readers"
KEPT = 3600.0  # seconds that a count outlives the process that wrote it last
RENEWED = KEPT / 3
TURN_TIMEOUT = 2.0  # of one reader, whatever others do to its principal's count
UNKNOWN = -1

Alive = Callable[[bool], Awaitable[frozenset[str]]]


@dataclass(slots=True)
class Account:
    """The places of one principal: those taken here, and what the bucket says.

    `stored` may be more than is taken for a moment, never for long: a release is written soon.
    """

    key: str
    taken: int = 0
    waiting: int = 0
    stored: int = 0
    revision: int = UNKNOWN
    written_at: float = 0.0
    others: dict[str, int] = field(default_factory=dict)
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def wanted(self) -> int:
        """The number of places of this process, requests that wait included."""
        return self.taken + self.waiting

    @property
    def is_written(self) -> bool:
        """Tell whether the bucket is known to say what is taken."""
        return self.stored == self.taken and self.revision != UNKNOWN

    @property
    def is_idle(self) -> bool:
        """Tell whether nothing is left to be known of it."""
        return not (self.wanted or self.stored or self.turn.locked())


class JetStreamReaderCounts:
    """Takes a place where the counts of all living processes leave one.

    A count is set only if no other process has set it meanwhile. While NATS is away the limit is
    that of this process.
    """

    def __init__(self, connection: Connection, scope: str, process: str, alive: Alive) -> None:
        """Count as one process; `alive` returns those whose lease has not ended, asked anew or not.

        Places are shared from the first `settle` on.
        """
        self.dirty = asyncio.Event()
        self._bucket = Bucket(connection, BUCKET, ttl=KEPT)
        self._scope = scope
        self._process = process
        self._alive = alive
        self._accounts: dict[str, Account] = {}
        self._is_shared = False
        self._has_told = False

    async def acquire(self, principal: str, most: int) -> bool:
        """Take one of so many places of a principal; return False where all are taken."""
        account = self._account(principal)
        if account.wanted >= most:
            return False
        account.waiting += 1
        try:
            is_granted = await self._try(account, most)
            account.taken += is_granted
        finally:
            account.waiting -= 1
            if not account.is_written:  # a cancellation leaves it open what was written
                self.dirty.set()
        return is_granted

    def release(self, principal: str) -> None:
        """Give a place back."""
        self._account(principal).taken -= 1
        self.dirty.set()

    def forget_stored(self) -> None:
        """Begin anew: the bucket, or this process's lease in it, was lost."""
        for account in self._accounts.values():
            account.stored, account.revision = 0, UNKNOWN
        self.dirty.set()

    async def settle(self) -> None:
        """Write the counts that have changed, and those that would expire; raise an outage."""
        self.dirty.clear()
        before = time.monotonic() - RENEWED
        try:
            for account in tuple(self._accounts.values()):
                is_old = account.stored > 0 and account.written_at < before
                if is_old or not account.is_written:
                    await self._settle(account)
                if account.is_idle:
                    self._accounts.pop(account.key, None)
        except OUTAGES as error:
            self.note_outage(error)
            raise
        if self._has_told:
            logger.info("streams are counted together with other processes again")
        self._is_shared, self._has_told = True, False

    def note_outage(self, error: BaseException) -> None:
        """Count in this process alone until NATS answers again."""
        self.dirty.set()
        self._is_shared = False
        if not self._has_told:
            name = type(error).__name__
            logger.warning("streams are counted in this process alone, for lack of NATS: %s", name)
        self._has_told = True

    def _account(self, principal: str) -> Account:
        digest = hashlib.sha256(principal.encode()).hexdigest()[:32]
        key = tokens(self._scope, digest)
        return self._accounts.setdefault(key, Account(key))

    async def _try(self, account: Account, most: int) -> bool:
        if self._is_shared:
            try:
                async with asyncio.timeout(TURN_TIMEOUT), account.turn:
                    return account.stored > account.taken or await self._claim(account, most)
            except OUTAGES as error:
                self.note_outage(error)
        return account.taken < most

    async def _claim(self, account: Account, most: int) -> bool:
        """Set the count to what is wanted, or to what there is room for."""
        while True:
            if account.revision == UNKNOWN:
                await self._read(account)
            room = most - sum(account.others.values())
            if room <= account.taken:
                await self._read(account)  # others may have gone
                room = most - sum(account.others.values())
            if room <= account.taken:
                return False
            if await self._write(account, min(room, account.wanted)):
                return True

    async def _settle(self, account: Account) -> None:
        async with asyncio.timeout(TURN_TIMEOUT), account.turn:
            while account.revision == UNKNOWN or not await self._write(account, account.taken):
                await self._read(account)

    async def _read(self, account: Account) -> None:
        """Read what other processes have; those that are not alive any more have nothing."""
        found = await self._bucket.get(account.key)
        account.revision = 0 if found is None else found.revision
        counts = {} if found is None else _counts_in(found.value)
        account.stored = counts.pop(self._process, 0)
        alive = await self._alive(False) if counts else frozenset()
        if not counts.keys() <= alive:  # one that has just begun, or has died
            alive = await self._alive(True)
        account.others = {it: count for it, count in counts.items() if it in alive}

    async def _write(self, account: Account, count: int) -> bool:
        counts = account.others | ({self._process: count} if count else {})
        value = json.dumps(counts).encode()
        revision, account.revision = account.revision, UNKNOWN
        written = await self._bucket.set(account.key, value, revision)
        if written is None:
            return False
        account.revision, account.stored = written, count
        account.written_at = time.monotonic()
        return True


def _counts_in(value: bytes) -> dict[str, int]:
    """Return the counts by process; what another program has written there counts for nothing."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {it: count for it, count in found.items() if isinstance(count, int) and count > 0}
