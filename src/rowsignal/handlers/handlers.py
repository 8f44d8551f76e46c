"""`ChangeHandlers`: functions that handle each change of a table once, whatever happens."""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from typing import Any, Self, TypeVar, overload

from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from rowsignal.changes import ChangeFilter, Operation
from rowsignal.handlers.consumer import Consumer, Feed, Retry, Start
from rowsignal.handlers.runner import HandlerContext, ResetHook
from rowsignal.handlers.worker import Worker
from rowsignal.hooks import Hooks
from rowsignal.listener import Listener
from rowsignal.postgres.connections import beside_with_options
from rowsignal.streams.tables import Columns

Function = TypeVar("Function", bound=Callable[..., Any])


class ChangeHandlers:
    """Handlers of the changes of logged tables, each with a position stored in the database.

        changes = ChangeHandlers(engine)

        @changes.on(Order, operations={"update"}, columns=[Order.status], name="mailer")
        async def send_mail(session, change): ...

        async with changes:  # or: await changes.run(), or: rowsignal work module:changes
            ...

    The session that a handler gets is in the transaction that moves the position past the change:
    what the handler does with it happens once for each change, across crashes and restarts of
    workers and of PostgreSQL, and with any number of workers. What it does elsewhere may happen
    again after a crash. One worker at a time handles a partition of a consumer, in the order of the
    log; when it ends, or stops renewing its lease for `lease` seconds, another goes on.

    `grace` is how many seconds a change that is being handled may take when the worker is stopped.
    `session_maker` makes the handlers' sessions, with a `bind` of ours. `hooks` hears what happens
    (by default those of the engine's `Listener`).
    """

    def __init__(
        self,
        engine: AsyncEngine,
        *,
        lease: float = 6.0,
        grace: float = 10.0,
        session_maker: async_sessionmaker[Any] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        if lease <= 0 or grace < 0:
            raise ValueError("lease is a number of seconds above 0, and grace is not negative.")
        self._engine = engine
        self._lease = lease
        self._grace = grace
        self._sessions = session_maker or async_sessionmaker(expire_on_commit=False)
        self._hooks = hooks
        self._consumers: dict[str, Consumer] = {}
        self._reset_hooks: list[tuple[str | None, ResetHook]] = []
        self._stack = AsyncExitStack()
        self._is_at_work = False

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """Return what is registered."""
        return tuple(self._consumers.values())

    def on(
        self,
        *models: type[Any],
        name: str | None = None,
        operations: Iterable[Operation | str] | None = None,
        columns: Columns | None = None,
        partitions: int = 1,
        batch: int | None = None,
        start: Start = "now",
        retry: Retry | None = None,
    ) -> Callable[[Function], Function]:
        """Register a handler for the changes of models, `async def handler(session, change)`.

        `name` is the consumer's, under which its position is stored: by default the function's.
        `operations` and `columns` (of which an update must have changed one) narrow what is
        handled. With `partitions` rows are spread by their keys, and handled side by side, by one
        process or several; the changes of a row stay in order. With `batch` the handler gets a list
        of up to so many changes, in one transaction. A new consumer begins at `start`: `"now"`, or
        the `"beginning"` of the log. `retry` says what becomes of a change whose handler fails.
        """
        wanted = ChangeFilter(
            operations=None if operations is None else frozenset(map(Operation, operations))
        )

        def register(function: Function) -> Function:
            consumer = Consumer(
                name=name or function.__name__,
                models=models,
                handler=function,
                filter=wanted,
                columns=columns,
                partitions=partitions,
                batch=batch,
                start=start,
                retry=retry or Retry(),
            )
            self._add(consumer)
            return function

        return register

    def _add(self, consumer: Consumer) -> None:
        if self._is_at_work:
            raise RuntimeError("Handlers are registered before the work begins.")
        if consumer.name in self._consumers:
            raise ValueError(
                f"There is a consumer {consumer.name!r} already: give this one another name=."
            )
        self._consumers[consumer.name] = consumer

    @overload
    def on_reset(self, consumer: str) -> Callable[[ResetHook], ResetHook]: ...
    @overload
    def on_reset(self, consumer: ResetHook) -> ResetHook: ...
    def on_reset(self, consumer: str | ResetHook) -> ResetHook | Callable[[ResetHook], ResetHook]:
        """Register what is to be done when changes of one consumer, or of any, are missing.

        `async def hook(session, reset)` gets a `ConsumerReset`, in the transaction that moves the
        position: read the tables as they are now, and what comes after is handled as before.
        Without a hook the consumer goes on, and the reset is recorded all the same.
        """
        if not isinstance(consumer, str):
            self._reset_hooks.append((None, consumer))
            return consumer

        def register(hook: ResetHook) -> ResetHook:
            self._reset_hooks.append((consumer, hook))
            return hook

        return register

    async def __aenter__(self) -> Self:
        """Begin to handle changes; what keeps that from happening is raised."""
        if self._is_at_work:
            raise RuntimeError("These handlers are at work already.")
        if not self._consumers:
            raise ValueError("No handler is registered: @changes.on(Order) registers one.")
        side_engine = beside_with_options(self._engine)
        hooks = self._hooks or Listener.of(self._engine).hooks
        context = HandlerContext(
            self._engine, side_engine, self._sessions, hooks, tuple(self._reset_hooks)
        )
        async with AsyncExitStack() as stack:
            stack.push_async_callback(side_engine.dispose)
            feeds = [await Feed.of(self._engine, consumer) for consumer in self.consumers]
            worker = Worker(context, feeds, lease=self._lease)
            stack.push_async_callback(worker.stop, self._grace)
            await worker.start()
            self._stack = stack.pop_all()
        self._is_at_work = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_at_work = False
        await self._stack.aclose()

    async def run(self) -> None:
        """Handle changes until cancelled."""
        async with self:
            await asyncio.Event().wait()
