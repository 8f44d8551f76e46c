"""The start of a stream: the first frames of a reader, and how it joins the live changes."""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from rowsignal.changes import Reset
from rowsignal.exceptions import PositionError
from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.json_rows import pin_settings
from rowsignal.sse import frames
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Row
from rowsignal.sse.access.views import UnknownHistoryError
from rowsignal.sse.delivery.buffers import Reader
from rowsignal.sse.delivery.distribution import AT_ONCE, UNKNOWN
from rowsignal.sse.delivery.feeds import TableFeed
from rowsignal.sse.delivery.groups import JoiningReader, SubscriberGroup
from rowsignal.sse.delivery.rows import all_rows
from rowsignal.sse.delivery.turns import FairTurns, Turn
from rowsignal.sse.limits import Limits
from rowsignal.streams.sources import SourceBatch

logger = logging.getLogger("rowsignal.sse")

NOT_RESUMABLE = "Without a change log there is no place to continue from."
TOO_SLOW = "The rows were not read within {:g} s: ask for fewer of them, with `pk` or `where`."

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Beginning:
    """The start that a reader requested: the current rows, or the changes after a position."""

    snapshot: bool = False
    after: str | None = None


FROM_NOW = Beginning()


class GapError(Exception):
    """Earlier changes are lost: the reader must start again."""


class BusyError(Exception):
    """No turn was granted in time: the reader must come back later."""


@dataclass(frozen=True, slots=True)
class StartContext:
    """The shared parts of all starts, with the turns that limit concurrent database work.

    A turn ends when the database has answered. A snapshot takes as long as its reader needs, so a
    reader that only catches up does not queue behind snapshots.
    """

    limits: Limits
    feed: TableFeed
    principal: str
    turns: FairTurns
    snapshots: FairTurns

    def beat(self, position: str | None = None) -> bytes:
        """Return a heartbeat."""
        return frames.heartbeat(self.limits.heartbeat, position)


class Waiting(Generic[Result]):
    """Runs work for a reader, and sends it heartbeats meanwhile."""

    def __init__(self, start: StartContext, work: Awaitable[Result]) -> None:
        self._start = start
        self._task = asyncio.ensure_future(work)

    async def beats(self) -> AsyncGenerator[bytes, None]:
        """Yield heartbeats until there is a result; cancel the work if the reader leaves."""
        try:
            while not self._task.done():
                await asyncio.wait([self._task], timeout=self._start.limits.heartbeat)
                if not self._task.done():
                    yield self._start.beat()
        finally:
            if not self._task.done():
                self._task.cancel()
                await asyncio.gather(self._task, return_exceptions=True)

    @property
    def result(self) -> Result:
        """Return the result of the work, or raise its error."""
        return self._task.result()


async def begin_live(
    start: StartContext, beginning: Beginning, reader: Reader, group: SubscriberGroup
) -> AsyncGenerator[bytes, None]:
    """Send changes from now on; they wait in the buffer while a snapshot is read."""
    yield frames.retry(start.limits.retry) + start.beat()
    if beginning.after is not None:
        reader.close(frames.reset(NOT_RESUMABLE))
        return
    distribution = start.feed.distribution
    distribution.attach(distribution.hold(reader, group))
    if beginning.snapshot:
        async for chunk in _snapshot(start, group, Reading()):
            yield chunk


async def begin_by_log(
    start: StartContext, beginning: Beginning, reader: Reader, group: SubscriberGroup
) -> AsyncGenerator[bytes, None]:
    """Send current rows or earlier changes, then join the live changes at an exact position."""
    yield frames.retry(start.limits.retry) + start.beat()
    after = beginning.after
    if after is None and beginning.snapshot:
        reading = Reading()
        async for chunk in _snapshot(start, group, reading):
            yield chunk
        after = reading.position
    if after is None:
        settling = Waiting(start, _join(start, reader, group))
        async for chunk in settling.beats():
            yield chunk
        yield start.beat(settling.result)
        return
    async with aclosing(_catch_up(start, reader, group, after)) as chunks:
        async for chunk in chunks:
            yield chunk


async def _join(start: StartContext, reader: Reader, group: SubscriberGroup) -> str:
    """Let a reader join now; return the position from which it gets all changes."""
    place = await start.feed.published_position()
    distribution = start.feed.distribution
    distribution.attach(distribution.hold(reader, group))
    return place


async def _catch_up(
    start: StartContext, reader: Reader, group: SubscriberGroup, after: str
) -> AsyncGenerator[bytes, None]:
    is_attached = False
    while not is_attached:
        step = Waiting(start, _step(start, reader, group, after))
        async for beat in step.beats():
            yield beat
        chunk, after, joining = step.result
        if chunk:
            yield chunk
        if joining is not None:
            # The last position of the log; live changes follow it.
            yield start.beat(after)
            is_attached = start.feed.distribution.attach(joining)


async def _step(
    start: StartContext, reader: Reader, group: SubscriberGroup, after: str
) -> tuple[bytes, str, JoiningReader | None]:
    """Read on; return frames, the position reached, and the place of a reader that has caught up.

    Changes published meanwhile are held back for it, unless the reader is too far behind.
    """
    distribution = start.feed.distribution
    place = await start.feed.published_position()
    # Nothing is awaited since the position was returned: what is published next is held.
    joining = distribution.hold(reader, group)
    try:
        batch = await _read(start, group, after, place)
        # What is held would grow for as long as this reader catches up.
        if not batch.is_complete:
            distribution.let_go(joining)
        chunk = await _show(start, group, batch)
    except _AheadError:
        distribution.let_go(joining)
        await start.feed.moved()
        return b"", after, None
    except BaseException:
        distribution.let_go(joining)
        raise
    return chunk, batch.position or after, joining if batch.is_complete else None


class _AheadError(Exception):
    """The reader's position lies after the position of the feed, which is catching up."""


async def _read(start: StartContext, group: SubscriberGroup, after: str, until: str) -> SourceBatch:
    if after == until:
        return SourceBatch((), after)
    tables = [row_filter.exposure.full_name for row_filter in group.row_filters.values()]
    async with start.turns.request(start.principal):
        try:
            batch = await start.feed.source.read(after, until, tables)
        except PositionError:
            raise
        except ValueError as error:
            raise _AheadError from error
    _refuse_gaps(batch.items)
    return batch


def _refuse_gaps(items: Iterable[object]) -> None:
    for item in items:
        if isinstance(item, Reset):
            raise GapError(item.reason)


async def _show(start: StartContext, group: SubscriberGroup, batch: SourceBatch) -> bytes:
    exposures = [row_filter.exposure for row_filter in group.row_filters.values()]
    wanted = {
        it.full_name: it.columns | group.row_filters[it.name].filter_columns for it in exposures
    }
    pieces: list[bytes] = []
    async with (
        start.turns.request(start.principal),
        aclosing(_loaded(start, batch, wanted)) as parts,
    ):
        async for items in parts:
            _refuse_gaps(items)
            events = [item for item in items if isinstance(item, Event)]
            for first in range(0, len(events), AT_ONCE):
                await asyncio.sleep(0)  # readers that have caught up have their turn
                pieces += _frames(group, events[first : first + AT_ONCE])
    return b"".join(pieces)


async def _loaded(
    start: StartContext, batch: SourceBatch, wanted: Mapping[QualifiedName, frozenset[str]]
) -> AsyncGenerator[list[Event | Reset], None]:
    """Yield the events of a batch in parts; the rows of the next are read while one is handled."""
    coming: deque[asyncio.Future[list[Event | Reset]]] = deque()
    try:
        for part in batch.parts():
            coming.append(asyncio.ensure_future(start.feed.events(part, wanted)))
            if len(coming) > 1:
                yield await coming.popleft()
        yield await coming.popleft()
    finally:
        for task in coming:
            task.cancel()
        await asyncio.gather(*coming, return_exceptions=True)


def _frames(group: SubscriberGroup, events: Sequence[Event]) -> list[bytes]:
    try:
        return [piece for _, piece in group.show(events)]
    except UnknownHistoryError:
        raise GapError(UNKNOWN) from None


@dataclass(slots=True)
class Reading:
    """The state of a snapshot; `position` is the position of its rows."""

    rows: int = 0
    position: str | None = None


async def _snapshot(
    start: StartContext, group: SubscriberGroup, reading: Reading
) -> AsyncGenerator[bytes, None]:
    """Yield the current rows; raise `GapError` if the snapshot times out.

    Until it ends, other readers wait for their snapshots, and vacuum waits for the transaction.
    """
    turn = start.snapshots.request(start.principal)
    try:
        async for beat in _queue(start, turn):
            yield beat
        async for chunk in _read_rows(start, group, reading):
            yield chunk
    finally:
        turn.release()
    names = [view.name for view in group.key.views]
    yield frames.snapshot_end(names, reading.rows, reading.position)


async def _queue(start: StartContext, turn: Turn) -> AsyncGenerator[bytes, None]:
    """Yield heartbeats until a snapshot may begin; raise `BusyError` on a timeout."""
    now = asyncio.get_running_loop().time
    ends_at = now() + start.limits.write_timeout
    while not turn.granted.done():
        await asyncio.wait([turn.granted], timeout=start.limits.heartbeat)
        if not turn.granted.done():
            if now() >= ends_at:
                raise BusyError
            yield start.beat()


async def _read_rows(
    start: StartContext, group: SubscriberGroup, reading: Reading
) -> AsyncGenerator[bytes, None]:
    timeout = start.limits.snapshot_timeout
    ends_at = asyncio.get_running_loop().time() + timeout
    async with AsyncExitStack() as stack:
        stack.enter_context(_late_is_gap(timeout))
        # Not around the loop: while a frame is sent, the time is that of the reader.
        async with asyncio.timeout_at(ends_at):
            connection = await _open(start, stack, group, reading)
        for view in group.key.views:
            rows = all_rows(connection, group.row_filters[view.name].exposure, view)
            pages = await stack.enter_async_context(aclosing(rows))
            while page := await _next_page(pages, ends_at):
                reading.rows += len(page)
                yield group.snapshot(view.name, page)


@contextmanager
def _late_is_gap(seconds: float) -> Iterator[None]:
    """Say of what takes too long that the reader has to start again."""
    try:
        yield
    except TimeoutError:
        raise GapError(TOO_SLOW.format(seconds)) from None


async def _open(
    start: StartContext, stack: AsyncExitStack, group: SubscriberGroup, reading: Reading
) -> AsyncConnection:
    """Open a connection that sees one moment; where the changes are logged, name its position."""
    rows = start.feed.source.rows(is_logged=group.key.with_id)
    view = await stack.enter_async_context(rows)
    reading.position = view.position
    await pin_settings(view.connection, is_local=True)
    return view.connection


async def _next_page(pages: AsyncGenerator[list[Row], None], ends_at: float) -> list[Row] | None:
    async with asyncio.timeout_at(ends_at):
        return await anext(pages, None)
