"""`ChangeHandlers`: functions that handle each change of a table once, across crashes."""

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

    The session that a handler gets is in the transaction that stores the position after the change:
    its writes are committed once for each change, across crashes and restarts of workers and of
    PostgreSQL, and with any number of workers. Effects outside this session may happen again after
    a crash. One worker at a time handles a partition of a consumer, in the order of the log; when
    it ends, or does not renew its lease for `lease` seconds, another worker takes over.

    `grace` is how many seconds the present change may take when the worker is stopped.
    `session_maker` creates the handlers' sessions; their `bind` is replaced. `hooks` receive events
    (default: the hooks of the engine's `Listener`).
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
        """Return the registered consumers."""
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

        `name` is the name of the consumer, under which its position is stored (default: the name of
        the function). `operations` and `columns` (an update must have changed one of them) filter
        the changes. With `partitions`, rows are distributed by their keys and handled concurrently,
        by one process or several; the changes of a row stay in order. With `batch`, the handler
        gets a list of up to that many changes, in one transaction. A new consumer begins at
        `start`: `"now"`, or the `"beginning"` of the log. `retry` has the rules for changes whose
        handler fails.
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
        """Register a hook that is called when changes of one consumer, or of any, are missing.

        `async def hook(session, reset)` gets a `ConsumerReset`, in the transaction that stores the
        new position: read the tables as they are now; later changes are handled as before. Without
        a hook the consumer goes on, and the reset is still recorded.
        """
        if not isinstance(consumer, str):
            self._reset_hooks.append((None, consumer))
            return consumer

        def register(hook: ResetHook) -> ResetHook:
            self._reset_hooks.append((consumer, hook))
            return hook

        return register

    async def __aenter__(self) -> Self:
        """Start to handle changes."""
        if self._is_at_work:
            raise RuntimeError("These handlers are at work already.")
        if not self._consumers:
            raise ValueError("No handler is registered: @changes.on(Order) registers one.")
        # Not from the application's pool: the next holder of a lease may terminate a connection.
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
