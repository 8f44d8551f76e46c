"""Sources of changes for a live query: the log, hints, or a timer."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Self

from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import Batch
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.change_log.tail import LogTail
from rowsignal.dispatcher import Dispatcher
from rowsignal.payload import Hint
from rowsignal.triggers.catalog import captures

logger = logging.getLogger("rowsignal.live_queries")

TableName = tuple[str | None, str]
LOG_LIMIT = 100


class TableChanges:
    """Calls `changed` when a table may have changed, inside `async with`.

    `is_polling` says that at least one table does not report its changes at present.
    """

    def __init__(
        self, engine: AsyncEngine, tables: Iterable[TableName], changed: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._tables = sorted(tables, key=repr)
        self._changed = changed
        self._stack = AsyncExitStack()
        self._hinted: list[TableName] = []
        self._has_silent = True
        self._log_failed = False

    @property
    def is_polling(self) -> bool:
        """Tell whether there may be changes that are not reported."""
        if self._has_silent or self._log_failed:
            return True
        return bool(self._hinted) and not Dispatcher.of(self._engine).are_armed(self._hinted)

    async def __aenter__(self) -> Self:
        """Find out how each table is captured, and listen."""
        async with self._engine.connect() as connection:
            found = await captures(connection, self._tables)
        logged = [(c.schema or "public", c.table) for c in found if c.kind == "log"]
        self._hinted = [(c.schema, c.table) for c in found if c.kind == "hint"]
        self._has_silent = not found or any(capture.kind is None for capture in found)
        async with AsyncExitStack() as stack:
            if self._hinted:
                Dispatcher.of(self._engine).follow(self._hinted, self)
                stack.callback(Dispatcher.of(self._engine).unfollow, self._hinted, self)
            if logged:
                await self._follow_log(stack, logged)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _follow_log(self, stack: AsyncExitStack, tables: Sequence[tuple[str, str]]) -> None:
        tail = LogTail.of(self._engine)
        subscription = await stack.enter_async_context(tail.subscribe(tables, limit=LOG_LIMIT))
        task = asyncio.create_task(self._read_log(subscription), name="rowsignal live query")
        stack.push_async_callback(_ended, task)

    async def _read_log(self, subscription: LogSubscription) -> None:
        try:
            async for item in subscription:
                if not isinstance(item, Batch) or item.changes:
                    self._changed()
        except Exception as error:  # noqa: BLE001 -- the task must not end unseen
            logger.warning(
                "a live query polls because the change log cannot be followed: %s", error
            )
            self._log_failed = True
            self._changed()

    def hinted(self, hint: Hint) -> None:  # noqa: ARG002 -- which row it was does not matter
        """Handle a hint."""
        self._changed()

    def interrupted(self, reason: str) -> None:  # noqa: ARG002 -- `is_polling` says it
        """Handle a gap: hints may be missing."""
        self._changed()

    def armed(self) -> None:
        """Handle the end of a gap: changes during the gap may need a read."""
        self._changed()


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
