"""What a fan-out is fed with: the change log's tail, and hints of tables without a log."""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import Batch, ChangeLog
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.change_log.tail import LogTail
from rowsignal.changes import Change, Reset
from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotWatchedError
from rowsignal.payload import Hint
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.delivery.fanout import FanOut
from rowsignal.sse.delivery.values import Values, read_patiently
from rowsignal.triggers.catalog import Capture

logger = logging.getLogger("rowsignal.sse")

MAX_HINTS = 10_000
TOO_MANY = "more changed than could be read"
NOT_ARMED = "notifications did not arrive for a while"
NOT_FOLLOWED = "The change log is not followed just now; come back in a moment."

START = 2.0


class LogFeed:
    """Follows the change log, and knows how far the fan-out has come with it."""

    def __init__(self, engine: AsyncEngine, fanout: FanOut, values: Values) -> None:
        self._engine = engine
        self._fanout = fanout
        self._values = values
        self._moved = asyncio.Event()
        self._batches: LogSubscription | None = None
        self._is_working = False
        self._task: asyncio.Task[None] | None = None
        self._tail: LogTail | None = None

    @property
    def tail(self) -> LogTail:
        """The tail that is followed."""
        if self._tail is None:
            self._tail = LogTail.of(self._engine)
        return self._tail

    @property
    def log(self) -> ChangeLog:
        """The log, for those who read it by themselves."""
        return self.tail.log

    @property
    def position(self) -> str | None:
        """How far the fan-out has come, as far as it is known."""
        return self._batches.position if self._batches is not None else None

    async def start(self, tables: Sequence[Exposure]) -> None:
        """Begin to follow some tables; raise what keeps the log from being read."""
        if self._task is None or self._task.done():
            started = asyncio.get_running_loop().create_future()
            self._task = asyncio.create_task(self._run(tables, started), name="rowsignal sse log")
            await started

    async def stop(self) -> None:
        """Follow no longer."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._tail is not None and not self._tail.subscribers:
            await self._tail.aclose()
        self._tail = None

    async def settle(self) -> str:
        """Return a position of after this call up to which everything has been published.

        It holds until the caller waits for something else.
        """
        await self.tail.look()
        while self._is_working or not _is_idle(self._batches):
            self._moved.clear()
            await self._moved.wait()
        return self.tail.position

    async def _run(self, tables: Sequence[Exposure], started: asyncio.Future[None]) -> None:
        names = [exposure.full_name for exposure in tables]
        try:
            async with self.tail.subscribe(names) as batches:
                self._batches = batches
                started.set_result(None)
                async for item in batches:
                    self._is_working = True
                    await self._take(item, tables)
                    self._is_working = False
                    self._moved.set()
        except Exception as error:
            if not started.done():
                started.set_exception(error)
                return
            logger.exception("the change log is no longer followed")
            self._fanout.reset(NOT_FOLLOWED, [exposure.name for exposure in tables])
        finally:
            self._batches, self._is_working = None, False
            self._moved.set()

    async def _take(self, item: Batch | Reset, tables: Sequence[Exposure]) -> None:
        if isinstance(item, Reset):
            self._fanout.reset(item.reason, [exposure.name for exposure in tables])
            return
        if not item.changes:
            return
        before = item.before or [None] * len(item.changes)
        changes = list(zip(item.changes, before, strict=True))
        self._fanout.publish(await read_patiently(self._values, changes, self._fanout))


def _is_idle(batches: LogSubscription | None) -> bool:
    if batches is None:
        raise NotWatchedError(NOT_FOLLOWED)
    return not batches.is_behind and not batches._buffer


class HintFeed:
    """Follows hints: what has changed, while somebody looks; nothing of it can be resumed."""

    def __init__(self, engine: AsyncEngine, fanout: FanOut, values: Values) -> None:
        self._engine = engine
        self._fanout = fanout
        self._values = values
        self._captures: dict[str, tuple[Capture, Exposure]] = {}
        self._hints: list[Hint] = []
        self._lost: str | None = None
        self._wake = asyncio.Event()
        self._sound = asyncio.Event()
        self._names: list[tuple[str | None, str]] = []
        self._labels: list[str] = []
        self._dispatcher: Dispatcher | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, tables: Sequence[tuple[Capture, Exposure]]) -> None:
        """Begin to follow some tables; return when hints of them arrive, or after a while."""
        if self._dispatcher is None:
            self._captures = {
                token: (capture, exposure)
                for capture, exposure in tables
                for token, _ in capture.channels
            }
            self._names = [exposure.full_name for _, exposure in tables]
            self._labels = [exposure.name for _, exposure in tables]
            self._dispatcher = Dispatcher.of(self._engine)
            self._dispatcher.follow(self._names, self)
            self._task = asyncio.create_task(self._run())
        with suppress(TimeoutError):
            async with asyncio.timeout(START):
                await self._sound.wait()

    async def stop(self) -> None:
        """Follow no longer."""
        dispatcher, self._dispatcher = self._dispatcher, None
        task, self._task = self._task, None
        if dispatcher is not None:
            dispatcher.unfollow(self._names, self)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        self._sound.clear()

    def hinted(self, hint: Hint) -> None:
        """Note a hint."""
        if len(self._hints) >= MAX_HINTS:
            self._hints.clear()
            self._lost = TOO_MANY
        self._hints.append(hint)
        self._wake.set()

    def interrupted(self, reason: str) -> None:
        """Note that hints may be missing."""
        self._sound.clear()
        self._lose(reason)

    def armed(self) -> None:
        """Note when hints arrive again: whoever reads already may have missed something."""
        dispatcher = self._dispatcher
        if self._sound.is_set() or dispatcher is None or not dispatcher.are_armed(self._names):
            return
        self._sound.set()
        if any(map(self._fanout.readers_of, self._labels)):
            self._lose(NOT_ARMED)

    def _lose(self, reason: str) -> None:
        self._lost = reason
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            hints, self._hints = self._hints, []
            lost, self._lost = self._lost, None
            if lost is not None:
                names = [exposure.name for _, exposure in self._captures.values()]
                reason = f"Changes may be missing: {lost}."
                self._fanout.reset(reason, names, continues=True)
            changes = [self._change(hint) for hint in hints if hint.token in self._captures]
            pairs = [(change, None) for change in changes]
            self._fanout.publish(await read_patiently(self._values, pairs, self._fanout))

    def _change(self, hint: Hint) -> Change:
        capture, exposure = self._captures[hint.token]
        key = None
        if hint.key is not None and len(hint.key) == len(capture.key_columns):
            values = dict(zip(capture.key_columns, hint.key, strict=True))
            key = {name: values[name] for name in exposure.key}
        schema, table = exposure.full_name
        return Change(
            operation=hint.operation,
            schema=schema,
            table=table,
            key=key,
            changed=hint.changed,
            transaction_id=hint.transaction_id,
        )
