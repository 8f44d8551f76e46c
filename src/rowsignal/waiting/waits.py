"""Waits for a change of a row, for a condition, for a row to appear or to disappear."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import ColumnElement
from sqlalchemy.ext.asyncio import AsyncConnection
from sqlalchemy.orm import InstrumentedAttribute

from rowsignal.dispatcher import (
    Appears,
    Changes,
    Condition,
    Disappears,
    Dispatcher,
    RowState,
    Satisfies,
    Subscription,
    attributes_in,
    condition_of,
    loaded_values,
    unreadable,
)
from rowsignal.exceptions import NotFoundError, WaitTimeoutError
from rowsignal.identifiers import qualify
from rowsignal.mapping import (
    PrimaryKey,
    Source,
    Target,
    attributes_of,
    held_instance,
    primary_key_of,
)
from rowsignal.postgres.errors import describe
from rowsignal.postgres.statements import query
from rowsignal.waiting.arguments import checked_interval, deadline_of, keys_of, shown
from rowsignal.waiting.results import attached, detached
from rowsignal.waiting.sessions import (
    SessionView,
    asked,
    is_within_outer_transaction,
    outside_values,
    refuse_unfinished,
    view_of,
)

Model = TypeVar("Model")
Columns = Sequence[InstrumentedAttribute[Any] | str]

LAST_READ = 0.5  # seconds that the read after the timeout may take


async def wait_for_row_change(
    session: Source,
    model: type[Model],
    pk_value: Any,
    *,
    columns: Columns | None = None,
    until: Callable[[Model], Any] | ColumnElement[bool] | None = None,
    interval: float = 0.5,
    timeout: float | None = None,
) -> Model:
    """Wait until a committed change of one row is seen, and return the row as it is then.

    `session` is an `AsyncSession`, or an `async_sessionmaker` or `AsyncEngine` to wait without a
    session. `pk_value` is what `session.get` takes: a scalar, a tuple in primary-key order, or a
    dict by attribute name. `columns` narrows what counts as a change.

        order = await session.get(Order, 42)
        order = await wait_for_row_change(session, Order, 42, columns=[Order.status], timeout=30)

    A change is a difference to what the caller saw last: to the loaded values where the session
    holds the row, else to the row as it is at the call. So a change committed between the load
    and the call returns at once, and a value that went and came back between two reads is none.

    With `until` the wait ends when the condition holds, at once if it already does: a function of
    the row as a detached object, or an SQL criterion over the model's own columns, which
    PostgreSQL evaluates. An exception in it ends this wait alone.

        await wait_for_row_change(engine, Order, 42, until=Order.status == "paid", timeout=30)

    Where the table has triggers (`install_triggers`) PostgreSQL wakes the wait; where it has
    none, or notifications do not arrive, the row is read every `interval` seconds. All waits
    share one connection to listen and one to read, with a second one for tables that are locked
    or slow; none of them takes one from the pool.

    Returns the object that the session holds, refreshed in place, or a detached one where there
    is no session. In a REPEATABLE READ or SERIALIZABLE transaction the object shows the values
    that were seen from outside, while queries of that transaction go on to show its snapshot.

    Raises `NotFoundError` when the row is absent or gets deleted, `WaitTimeoutError` after
    `timeout` seconds from the call (None: never) and one last read, `PendingChangesError` when
    the session itself has unfinished changes of the row, `UnreadableRowError` for a value that
    this process cannot read, `ValueError` or `TypeError` for unknown columns and for a key that
    its column cannot hold.
    """
    wait = _Wait(session, model, columns, until, interval, timeout)
    await wait.begin({None: (pk_value, primary_key_of(wait.target.shape.mapper, pk_value))})
    _, row = await wait.outcome()
    return cast("Model", row)


async def wait_for_any_row_change(
    session: Source,
    model: type[Model],
    pk_values: Iterable[Any],
    *,
    columns: Columns | None = None,
    until: Callable[[Model], Any] | ColumnElement[bool] | None = None,
    interval: float = 0.5,
    timeout: float | None = None,
) -> tuple[Any, Model]:
    """Wait as `wait_for_row_change` does for the first of several rows; return its key and row.

        key, order = await wait_for_any_row_change(session, Order, [1, 2, 3], timeout=30)

    The key is as it was given. An absent row, or one that gets deleted, raises `NotFoundError`.
    """
    wait = _Wait(session, model, columns, until, interval, timeout)
    await wait.begin(keys_of(wait.target.shape, pk_values))
    key, row = await wait.outcome()
    return key, cast("Model", row)


async def wait_for_row(
    session: Source,
    model: type[Model],
    pk_value: Any,
    *,
    interval: float = 0.5,
    timeout: float | None = None,
) -> Model:
    """Wait until a row exists, and return it; at once if it exists already.

    order = await wait_for_row(session, Order, 42, timeout=30)
    """
    wait = _Wait(session, model, None, None, interval, timeout, APPEARS)
    await wait.begin({None: (pk_value, primary_key_of(wait.target.shape.mapper, pk_value))})
    _, row = await wait.outcome()
    return cast("Model", row)


async def wait_for_row_deleted(
    session: Source,
    model: type[Any],
    pk_value: Any,
    *,
    interval: float = 0.5,
    timeout: float | None = None,
) -> None:
    """Wait until a row is gone; return at once if there is none.

    An object that the session holds is not changed: expunge it.

        await wait_for_row_deleted(session, Order, 42, timeout=30)
    """
    wait = _Wait(session, model, None, None, interval, timeout, DISAPPEARS)
    await wait.begin({None: (pk_value, primary_key_of(wait.target.shape.mapper, pk_value))})
    await wait.outcome()


@dataclass(slots=True)
class _Row:
    """One of the waited-for rows."""

    given: Any
    subscription: Subscription


async def _silently(future: asyncio.Future[Any]) -> None:
    """Wait for a future; the caller reads its error later."""
    try:
        await future
    except Exception:  # noqa: BLE001 -- it stays in the future
        return


CHANGES = Changes()
APPEARS = Appears()
DISAPPEARS = Disappears()


class _Wait:
    """A wait for the first of some rows of a model."""

    __slots__ = (
        "_attributes",
        "_condition",
        "_deadline",
        "_dispatcher",
        "_interval",
        "_rows",
        "_timeout",
        "_view",
        "target",
    )

    def __init__(
        self,
        source: Source,
        model: type[Any],
        columns: Columns | None,
        until: Any,
        interval: float,
        timeout: float | None,
        condition: Condition | None = None,
    ) -> None:
        self.target = Target.of(source, model)
        shape = self.target.shape
        self._timeout = timeout
        self._deadline = deadline_of(timeout)
        self._interval = checked_interval(interval)
        self._attributes = attributes_of(shape, columns)
        self._condition = condition
        if until is not None:
            self._condition = condition_of(shape, until)
            self._attributes = self._attributes or attributes_in(shape, until)
        self._dispatcher = Dispatcher.of(self.target.engine)
        self._view = SessionView(self.target)
        self._rows: list[_Row] = []

    async def begin(self, keys: dict[Any, tuple[Any, PrimaryKey]]) -> None:
        """Subscribe to the rows; refuse rows that the session has changed itself."""
        target = self.target
        if target.session is not None:
            for _, key in keys.values():
                refuse_unfinished(target.session, target.shape, key)
        async with asked(target):
            self._view = await view_of(target, self._dispatcher)
            self.target = self._view.target
            plans = [(given, key, await self._baseline(key)) for given, key in keys.values()]
        for given, key, (condition, seen) in plans:
            self._rows.append(_Row(given, self._subscribe(key, condition, seen)))

    async def outcome(self) -> tuple[Any, Any]:
        """Return the key and the row that ended the wait first."""
        table = {"db.collection.name": self.target.shape.mapper.local_table.description}
        try:
            with self._dispatcher.listener.hooks.span("rowsignal.wait", table):
                ended = await self._first()
                found = await self._found(ended.subscription)
            return ended.given, await self._presented(ended.subscription, found)
        finally:
            for row in self._rows:
                self._dispatcher.unsubscribe(row.subscription)

    async def _baseline(self, key: PrimaryKey) -> tuple[Condition, dict[str, Any] | None]:
        """Return the condition of the wait for a row, and the values that the caller saw last."""
        session, shape = self.target.session, self.target.shape
        if session is None:
            return self._condition or CHANGES, None
        if await is_within_outer_transaction(self._view, key):
            return self._condition or Changes(is_patient=True), None
        held = held_instance(session, shape.mapper, key)
        # A condition is level-triggered: what the caller saw before does not matter.
        if held is None or self._condition is not None:
            return self._condition or CHANGES, None
        seen = loaded_values(held, shape)
        return CHANGES, seen | dict(outside_values(self._view, key) or {})

    def _subscribe(
        self, key: PrimaryKey, condition: Condition, seen: dict[str, Any] | None
    ) -> Subscription:
        return self._dispatcher.subscribe(
            self.target.shape,
            key,
            condition=condition,
            attributes=self._concerning(condition),
            seen=seen,
            needs=self._needs(condition),
            interval=self._interval,
        )

    def _concerning(self, condition: Condition) -> tuple[str, ...] | None:
        """Return the attributes whose changes concern the wait; None for all."""
        shape = self.target.shape
        if isinstance(condition, Appears | Disappears):  # an update of another column does not
            columns = shape.mapper.primary_key
            return tuple(shape.mapper.get_property_by_column(column).key for column in columns)
        return self._attributes

    def _needs(self, condition: Condition) -> Iterable[str]:
        """Return the attributes to read in addition to the compared ones."""
        shape = self.target.shape
        if isinstance(condition, Satisfies):
            return shape.columns
        if isinstance(condition, Disappears):
            return ()
        is_enough = self.target.session is not None or shape.is_plain
        return shape.eager_attributes if is_enough else ()

    async def _first(self) -> _Row:
        """Return the row whose wait ended first; raise `WaitTimeoutError` if none does."""
        if self._deadline is None:
            await self._any()
        else:
            limit = asyncio.timeout_at(self._deadline)
            try:
                async with limit:
                    await self._any()
            except TimeoutError:
                if not limit.expired():
                    raise
                await self._last_read()
        for row in self._rows:
            if row.subscription.future.done():
                return row
        raise WaitTimeoutError(self._complaint())

    def _any(self) -> Awaitable[object]:
        futures = [row.subscription.future for row in self._rows]
        # Most waits are for one row: asyncio.wait would cost each a future and callbacks more.
        if len(futures) == 1:
            return _silently(futures[0])
        return asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)

    async def _last_read(self) -> None:
        subscriptions = [row.subscription for row in self._rows]
        for one in subscriptions:
            # The timeout has cancelled the future that it was awaiting.
            one.reopen()
        if any(one.future.done() for one in subscriptions):
            return
        rows = subscriptions[0].watch
        asked = self._dispatcher.read_soon(rows, {one.row_id for one in subscriptions})
        # asyncio.wait leaves the read of the other waits alone when the time is over.
        await asyncio.wait({asked}, timeout=LAST_READ)
        if not asked.cancel() and not asked.cancelled():
            asked.exception()  # the wait has timed out in any case

    async def _found(self, subscription: Subscription) -> RowState | None:
        try:
            return subscription.future.result()
        except NotFoundError as error:
            if not subscription.was_found and await self._is_hidden():
                name = self.target.shape.mapper.class_.__name__
                raise NotFoundError(
                    f"{name} {shown(subscription.primary_key)!r} cannot be seen from outside:"
                    " row-level security applies to the connection that reads for waits, where"
                    " settings of your session do not. Wait with a role that may see the row."
                ) from error
            raise

    async def _is_hidden(self) -> bool:
        shape, reads = self.target.shape, self._dispatcher.listener.reads
        names = [qualify(table.name, shape.name_of(table)[0]) for table in shape.tables]

        async def work(connection: AsyncConnection) -> bool:
            result = await connection.exec_driver_sql(query("hides_rows"), (names,))
            return bool(result.scalar_one())

        return await reads.run(work, lane="catalogue", timeout=self._dispatcher.pace.query_timeout)

    async def _presented(self, subscription: Subscription, found: RowState | None) -> Any:
        if found is None:
            return None
        try:
            if self.target.session is None:
                return await detached(self._dispatcher, subscription, found, self._deadline)
            return await attached(self.target.session, self._view, subscription, found)
        except RecursionError as error:  # Python 3.13 reads JSON that is too deep to be copied
            raise unreadable(subscription, error) from error

    def _complaint(self) -> str:
        model, waits = (
            self.target.shape.mapper.class_.__name__,
            [r.subscription for r in self._rows],
        )
        keys = ", ".join(repr(shown(wait.primary_key)) for wait in waits[:5])
        keys += ", ..." if len(waits) > 5 else ""
        unread = [wait for wait in waits if not wait.is_read]
        if unread:
            failure = unread[0].failure
            reason = f": {describe(failure)}" if failure is not None else ", not even once."
            return f"{model} {keys} could not be read in {self._timeout} s{reason}"
        if isinstance(self._condition, Appears):
            return f"{model} {keys} did not appear in {self._timeout} s."
        if isinstance(self._condition, Disappears):
            return f"{model} {keys} was not deleted in {self._timeout} s."
        if self._condition is not None:
            return f"{model} {keys} did not meet the condition in {self._timeout} s."
        columns = "any column" if self._attributes is None else ", ".join(self._attributes)
        return f"{model} {keys} did not change ({columns}) in {self._timeout} s."
