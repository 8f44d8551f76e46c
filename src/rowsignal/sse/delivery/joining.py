"""Ways in: what a reader is shown first, and how it then joins those who are up to date."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.change_log import Batch
from rowsignal.changes import Reset
from rowsignal.sse import frames
from rowsignal.sse.access.exposures import Row
from rowsignal.sse.access.views import UnknownHistoryError
from rowsignal.sse.delivery.audiences import Audience
from rowsignal.sse.delivery.buffers import Reader
from rowsignal.sse.delivery.fanout import UNKNOWN, FanOut
from rowsignal.sse.delivery.rows import all_rows, pin_settings
from rowsignal.sse.delivery.sources import Sources

NOT_RESUMABLE = "Without a change log there is no place to continue from."
TOO_SLOW = "The rows were not read within {:g} s: ask for fewer of them, with `pk` or `where`."


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a reader has asked for at first: the current rows, or what came after a position."""

    snapshot: bool = False
    after: str | None = None


FROM_NOW = Beginning()


@dataclass(frozen=True, slots=True)
class Entrance:
    """What all ways in need; the bounds are on how many do something at once.

    A turn ends when the database has answered. A snapshot lasts as long as its reader needs, so
    who only catches up does not queue behind it.
    """

    engine: AsyncEngine
    fanout: FanOut
    sources: Sources
    turns: asyncio.Semaphore
    snapshots: asyncio.Semaphore


async def enter_live(
    entrance: Entrance, beginning: Beginning, reader: Reader, audience: Audience
) -> AsyncGenerator[bytes, None]:
    """Show what comes from now on; a snapshot is read while that waits in the buffer."""
    yield _greeting(entrance)
    if beginning.after is not None:
        reader.close(frames.reset(NOT_RESUMABLE))
        return
    entrance.fanout.attach(entrance.fanout.hold(reader, audience))
    if beginning.snapshot:
        async for beat in _queue(entrance):
            yield beat
        try:
            async with entrance.engine.connect() as plain:
                connection = await plain.execution_options(isolation_level="REPEATABLE READ")
                async for chunk in _snapshot(entrance, connection, audience, None):
                    yield chunk
        finally:
            entrance.snapshots.release()


async def enter_by_log(
    entrance: Entrance, beginning: Beginning, reader: Reader, audience: Audience
) -> AsyncGenerator[bytes, None]:
    """Show the rows or the changes that lie behind, then join at one exact position."""
    yield _greeting(entrance)
    after, log = beginning.after, entrance.sources.log.log
    if after is None and beginning.snapshot:
        async for beat in _queue(entrance):
            yield beat
        try:
            async with log.snapshot() as seen:
                async for chunk in _snapshot(entrance, seen.connection, audience, seen.position):
                    yield chunk
                after = seen.position
        finally:
            entrance.snapshots.release()
    if after is None:
        place = await entrance.sources.log.settle()
        entrance.fanout.attach(entrance.fanout.hold(reader, audience))
        yield frames.heartbeat(entrance.fanout.limits.heartbeat, place)
        return
    async for chunk in _catch_up(entrance, reader, audience, after):
        yield chunk


def _greeting(entrance: Entrance) -> bytes:
    limits = entrance.fanout.limits
    return frames.retry(limits.retry) + frames.heartbeat(limits.heartbeat)


async def _queue(entrance: Entrance) -> AsyncGenerator[bytes, None]:
    """Yield heartbeats until a snapshot may begin; its end has to be said to `snapshots`."""
    heartbeat = entrance.fanout.limits.heartbeat
    while True:
        try:
            async with asyncio.timeout(heartbeat):
                await entrance.snapshots.acquire()
        except TimeoutError:
            yield frames.heartbeat(heartbeat)
        else:
            return


class GapError(Exception):
    """What lies behind can not be told: the reader has to start again."""


async def _catch_up(
    entrance: Entrance, reader: Reader, audience: Audience, after: str
) -> AsyncGenerator[bytes, None]:
    fanout, is_level = entrance.fanout, False
    while not is_level:
        place = await entrance.sources.log.settle()
        joiner = fanout.hold(reader, audience)
        try:
            batch = await _read(entrance, audience, after, place)
            is_level = batch.is_complete
            if not is_level:
                # Too far behind to have all others' changes held for it: read on without.
                fanout.let_go(joiner)
            chunk = await _show(entrance, audience, batch)
            if chunk:
                yield chunk
            after = batch.position
        except BaseException:
            fanout.let_go(joiner)
            raise
    yield frames.heartbeat(fanout.limits.heartbeat, after)
    fanout.attach(joiner)


async def _read(entrance: Entrance, audience: Audience, after: str, until: str) -> Batch:
    if after == until:
        return Batch(changes=[], position=after)
    tables = [lens.exposure.full_name for lens in audience.lenses.values()]
    async with entrance.turns:
        batch = await entrance.sources.log.log.read(after, until=until, tables=tables)
    if isinstance(batch, Reset):
        raise GapError(batch.reason)
    return batch


async def _show(entrance: Entrance, audience: Audience, batch: Batch) -> bytes:
    before = batch.before or [None] * len(batch.changes)
    more = {name: lens.filter_columns for name, lens in audience.lenses.items()}
    pairs = zip(batch.changes, before, strict=True)
    async with entrance.turns:
        events = await entrance.sources.values.events(pairs, more)
    try:
        return b"".join(piece for _, piece in audience.show(events))
    except UnknownHistoryError:
        raise GapError(UNKNOWN) from None


async def _snapshot(
    entrance: Entrance, connection: AsyncConnection, audience: Audience, position: str | None
) -> AsyncGenerator[bytes, None]:
    """Yield the current rows; raise `GapError` when that takes too long, whoever is slow.

    Until it is over, others wait for their snapshots, and vacuum for the transaction.
    """
    patience = entrance.fanout.limits.snapshot
    ends_at = asyncio.get_running_loop().time() + patience
    views, rows = audience.key.views, 0
    try:
        async with asyncio.timeout_at(ends_at):
            await pin_settings(connection, is_local=True)
        for view in views:
            lens = audience.lenses[view.name]
            async with aclosing(all_rows(connection, lens.exposure, view)) as pages:
                while page := await _next_page(pages, ends_at):
                    rows += len(page)
                    yield b"".join(lens.snapshot(page))
    except TimeoutError:
        raise GapError(TOO_SLOW.format(patience)) from None
    yield frames.snapshot_end([view.name for view in views], rows, position)


async def _next_page(pages: AsyncGenerator[list[Row], None], ends_at: float) -> list[Row] | None:
    async with asyncio.timeout_at(ends_at):
        return await anext(pages, None)
