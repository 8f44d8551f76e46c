"""One reader of a stream for a whole process: what it reads goes to all feeds."""

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import NoReturn, Protocol

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api
from nats.js.errors import NotFoundError

from rowsignal.changes import Reset
from rowsignal.exceptions import NotWatchedError, UnavailableError
from rowsignal.listener import reconnect_delays
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.nats.subjects import stream_name
from rowsignal.postgres.errors import describe
from rowsignal.relay.messages import POSITION, Item, decode
from rowsignal.relay.ordered import PAGE, OrderedMessages, pages
from rowsignal.relay.places import Place, incarnation_of

logger = logging.getLogger("rowsignal.relay")

PATIENCE = 5.0  # seconds for NATS to answer a reader that waits
LONGEST_DELAY = 1.0
LATE = 0.05
MAX_RECENT = 10_000
MAX_RECENT_BYTES = 16 * 2**20

NO_STREAM = (
    "There is no stream {} in NATS: run `rowsignal relay` against the database {}, or check the"
    " names."
)
DISCARDED = "Changes are missing: NATS has discarded messages that were not read in time."
REPLACED = "Changes may be missing: the stream in NATS is another one now."
AHEAD = "Changes may be missing: the position is ahead of the stream in NATS."


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of the stream; `position` is that of the log."""

    sequence: int
    item: Item
    position: str
    size: int


class Follower(Protocol):
    """Callback interface for the messages of a stream. Methods must not block."""

    @property
    def is_full(self) -> bool:
        """Tell whether it has as much to do as it can hold."""

    def push(self, item: Item, position: str) -> None:
        """Take a message, after which readers resume at a position."""

    async def room(self) -> None:
        """Wait until it is no longer full."""


class StreamTail:
    """Follows the stream of one database while there is a follower."""

    def __init__(self, nats: str | Client, database: str) -> None:
        self.stream = stream_name(database)
        self.log_position = ""
        self._missing = NO_STREAM.format(self.stream, database)
        self._nats = nats
        self._incarnation = ""
        self._sequence = 0
        self._followers: set[Follower] = set()
        self._recent: deque[Entry] = deque()
        self._recent_bytes = 0
        self._moved = asyncio.Event()
        self._client: Client | None = None
        self._opening = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[NoReturn] | None = None

    @property
    def place(self) -> Place:
        """The sequence up to which the stream has been read."""
        return Place(self._incarnation, self._sequence)

    @property
    def is_open(self) -> bool:
        """Tell whether the stream is followed."""
        return self._task is not None and not self._task.done()

    async def attach(self, follower: Follower) -> None:
        """Give a follower every message from now on; raise what keeps them from coming."""
        async with self._opening:
            if not self.is_open:
                await self._open()
            self._followers.add(follower)

    async def detach(self, follower: Follower) -> None:
        """Give a follower nothing more; stop after the last one."""
        self._followers.discard(follower)
        async with self._opening:
            if not self._followers:
                await self._close()

    async def catch_up(self) -> None:
        """Read on to what was the stream's end after this call began."""
        try:
            async with asyncio.timeout(PATIENCE):
                info = await self._info()
                incarnation, last = _incarnation(info), info.state.last_seq
                while self._incarnation != incarnation or self._sequence < last:
                    await self.moved()
        except OUTAGES as error:
            raise UnavailableError("NATS does not answer just now.") from error

    async def moved(self) -> None:
        """Wait until more has been read."""
        self._moved.clear()
        await self._moved.wait()

    async def read(self, after: int, until: int) -> list[Entry] | Reset:
        """Return the messages after a sequence, as many as are good at a time, or `Reset`."""
        last = min(until, after + PAGE)
        if self._recent and self._recent[0].sequence <= after + 1:
            return [entry for entry in self._recent if after < entry.sequence <= last]
        try:
            async with asyncio.timeout(PATIENCE):
                entries = await self._fetch(after, last)
        except OUTAGES as error:
            raise UnavailableError("NATS does not answer just now.") from error
        expected = range(after + 1, last + 1)
        if [entry.sequence for entry in entries] != list(expected):
            return Reset(reason=DISCARDED)
        return entries

    async def _fetch(self, after: int, last: int) -> list[Entry]:
        entries: list[Entry] = []
        async with pages(self._connection(), self.stream, after + 1) as reader:
            done = after
            while done < last:
                messages = await reader.fetch(last - done)
                if not messages and await self._has_discarded(done):
                    return entries
                found = self._contiguous(done, messages)
                entries += found
                if len(found) < len(messages):
                    return entries
                done += len(found)
        return entries

    def _contiguous(self, after: int, messages: Sequence[Msg]) -> list[Entry]:
        """Return the messages before the first that is missing."""
        entries: list[Entry] = []
        for message in messages:
            sequence = message.metadata.sequence.stream
            if sequence != after + len(entries) + 1:
                break
            entries.append(self._entry(sequence, message))
        return entries

    async def _has_discarded(self, sequence: int) -> bool:
        """Tell whether what comes after a sequence is gone; else a replica may be a little late."""
        if (await self._info()).state.first_seq > sequence + 1:
            return True
        await asyncio.sleep(LATE)
        return False

    async def _open(self) -> None:
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(PATIENCE):
                    client = connected(self._nats, "rowsignal gateway")
                    self._client = await stack.enter_async_context(client)
                    info = await self._info()
                    self._begin(info)
                    await self._learn_position(info)
            except NotFoundError:
                raise NotWatchedError(self._missing) from None
            except OUTAGES as error:
                raise UnavailableError("NATS does not answer just now.") from error
            self._task = asyncio.create_task(self._run(), name="rowsignal stream tail")
            self._stack = stack.pop_all()

    async def _close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        await self._stack.aclose()
        self._client = None

    def _connection(self) -> Client:
        if self._client is None:
            raise UnavailableError("The stream in NATS is not followed just now.")
        return self._client

    async def _info(self) -> api.StreamInfo:
        return await self._connection().jetstream(timeout=PATIENCE).stream_info(self.stream)

    def _begin(self, info: api.StreamInfo) -> None:
        self._incarnation, self._sequence = _incarnation(info), info.state.last_seq
        self._recent.clear()
        self._recent_bytes = 0

    async def _learn_position(self, info: api.StreamInfo) -> None:
        """Ask how far in the log the last message is: snapshots are compared with that."""
        js = self._connection().jetstream(timeout=PATIENCE)
        self.log_position = ""
        if info.state.messages:
            last = await js.get_msg(self.stream, seq=info.state.last_seq)
            self.log_position = (last.headers or {}).get(POSITION, "")

    async def _run(self) -> NoReturn:
        delays = reconnect_delays()
        while True:
            try:
                await self._align()
                delays = reconnect_delays()
                messages = OrderedMessages(self._connection(), self.stream, self._take)
                await messages.run(self._sequence + 1)
            except OUTAGES as error:
                logger.warning("the stream cannot be read just now: %s", describe(error))
            await asyncio.sleep(min(next(delays), LONGEST_DELAY))

    async def _align(self) -> None:
        """Compare the stream with what was read of it; tell the followers of a gap."""
        info = await self._info()
        state = info.state
        if _incarnation(info) != self._incarnation:
            await self._skip(info, REPLACED)
        elif state.last_seq < self._sequence:
            await self._skip(info, AHEAD)

    async def _skip(self, info: api.StreamInfo, reason: str) -> None:
        self._begin(info)
        await self._learn_position(info)
        self._tell(Reset(reason=reason, position=str(self.place)), str(self.place))

    async def _take(self, sequence: int, message: Msg) -> None:
        if sequence <= self._sequence:
            return
        if sequence > self._sequence + 1:
            self._recent.clear()
            self._recent_bytes = 0
            self._tell(Reset(reason=DISCARDED), str(self.place))
        entry = self._entry(sequence, message)
        self._remember(entry)
        self._sequence, self.log_position = sequence, entry.position
        self._tell(entry.item, str(self.place))
        for follower in [it for it in self._followers if it.is_full]:
            await follower.room()

    def _tell(self, item: Item, position: str) -> None:
        for follower in tuple(self._followers):
            follower.push(item, position)
        self._moved.set()

    def _entry(self, sequence: int, message: Msg) -> Entry:
        headers = message.headers or {}
        place = str(Place(self._incarnation, sequence))
        item = decode(message.data, headers, place)
        return Entry(sequence, item, headers.get(POSITION, ""), len(message.data))

    def _remember(self, entry: Entry) -> None:
        """Keep the last messages: readers that come back after a moment want just these."""
        recent = self._recent
        recent.append(entry)
        self._recent_bytes += entry.size
        while len(recent) > MAX_RECENT or self._recent_bytes > MAX_RECENT_BYTES:
            self._recent_bytes -= recent.popleft().size


def _incarnation(info: api.StreamInfo) -> str:
    assert info.created is not None  # noqa: S101 -- every answer of the server has it
    return incarnation_of(info.created)
