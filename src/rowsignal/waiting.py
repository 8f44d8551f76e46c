"""Wait until somebody commits a change of a row."""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, undefer
from sqlalchemy.orm.attributes import set_committed_value

from rowsignal.dispatcher import Dispatcher
from rowsignal.dispatcher.row_reader import Found
from rowsignal.dispatcher.row_waits import Subscription
from rowsignal.exceptions import NotFoundError, PendingChangesError, WaitTimeoutError
from rowsignal.listener import OUTAGES
from rowsignal.mapping import (
    PrimaryKey,
    RowShape,
    Source,
    Target,
    attributes_of,
    has_flushed,
    held_instance,
    primary_key_of,
)

Model = TypeVar("Model")

LAST_LOOK = 2.0
SHORTEST_INTERVAL = 0.01


async def wait_for_row_change(
    session: Source,
    model: type[Model],
    pk_value: Any,
    *,
    columns: Sequence[InstrumentedAttribute[Any] | str] | None = None,
    interval: float = 0.5,
    timeout: float | None = None,
) -> Model:
    """Wait until a committed change of one row is seen, and return the row as it is then.

    `session` is an `AsyncSession`, or an `async_sessionmaker` or `AsyncEngine` to wait without a
    session of one's own. `pk_value` is what `session.get` takes: a scalar, a tuple in primary-key
    order, or a dict by attribute name. `columns` narrows what counts as a change.

        order = await session.get(Order, 42)
        order = await wait_for_row_change(session, Order, 42, columns=[Order.status], timeout=30)

    A change is a difference to what the caller saw last: to the loaded values where the session
    holds the row, else to the row as it is at the call. So a change committed between the load
    and the call returns at once, and a value that went and came back between two looks is none.

    Where the table has triggers (`install_triggers`) PostgreSQL wakes the wait; where it has
    none, or notifications do not arrive, the row is looked at every `interval` seconds. All waits
    share one connection to listen and one to look; none of them takes one from the pool.

    Returns the object that the session holds, refreshed in place, or a detached one where there
    is no session. In a REPEATABLE READ or SERIALIZABLE transaction the object shows the values
    that were seen from outside, while queries of that transaction go on to show its snapshot.

    Raises `NotFoundError` when the row is absent or gets deleted, `WaitTimeoutError` after
    `timeout` seconds from the call (None: never) and one last look, `PendingChangesError` when
    the session itself has unfinished changes of the row, `ValueError` for unknown columns.
    """
    deadline = _deadline(timeout)
    target = Target.of(session, model)
    key = primary_key_of(target.shape.mapper, pk_value)
    attributes = attributes_of(target.shape, columns)
    held = None
    if target.session is not None:
        held = held_instance(target.session, target.shape.mapper, key)
        _refuse_unfinished(target.session, target.shape, key, held)
    dispatcher = Dispatcher.of(target.engine)
    subscription = dispatcher.subscribe(
        target.shape,
        key,
        attributes=attributes,
        seen=None if held is None else _loaded_values(held, target.shape),
        interval=_checked_interval(interval),
    )
    label = target.shape.mapper.local_table.description
    try:
        with dispatcher.listener.hooks.span("rowsignal.wait", {"db.collection.name": label}):
            found = await _outcome(dispatcher, subscription, deadline)
    except TimeoutError as error:
        if subscription.future.done():
            raise
        raise WaitTimeoutError(_complaint(target.shape, key, attributes, timeout)) from error
    finally:
        dispatcher.unsubscribe(subscription)
    if target.session is None:
        return cast("Model", await _detached(dispatcher, target, key))
    return cast("Model", await _present(target.session, target.shape, held, subscription, found))


def _deadline(timeout: float | None) -> float | None:
    if timeout is None or timeout == math.inf:
        return None
    if not timeout >= 0:
        raise ValueError(f"timeout={timeout!r}: pass seconds from 0 on, or None to wait for ever.")
    return asyncio.get_running_loop().time() + timeout


def _checked_interval(interval: float) -> float:
    if not 0 <= interval < math.inf:
        raise ValueError(f"interval={interval!r}: pass the seconds between two looks.")
    return max(interval, SHORTEST_INTERVAL)


def _refuse_unfinished(
    session: AsyncSession, shape: RowShape, key: PrimaryKey, held: object | None
) -> None:
    sync = session.sync_session
    unfinished = [held] if held is not None else []
    unfinished += [thing for thing in sync.new if _has_key(thing, shape, key)]
    for instance in unfinished:
        if instance in sync.new or sync.is_modified(instance) or has_flushed(sync, instance):
            name = shape.mapper.class_.__name__
            raise PendingChangesError(
                f"This session has unfinished changes of {name} {key}: commit or roll back before"
                " waiting, or the wait would end at its own change, or wait for itself."
            )


def _has_key(instance: object, shape: RowShape, key: PrimaryKey) -> bool:
    mapper = shape.mapper
    return (
        isinstance(instance, mapper.class_)
        and tuple(mapper.primary_key_from_instance(instance)) == key
    )


def _loaded_values(instance: object, shape: RowShape) -> dict[str, Any]:
    loaded = inspect(instance, raiseerr=True).dict
    return {name: loaded[name] for name in shape.columns if name in loaded}


async def _outcome(
    dispatcher: Dispatcher, subscription: Subscription, deadline: float | None
) -> Found:
    try:
        async with asyncio.timeout_at(deadline):
            return await asyncio.shield(subscription.future)
    except TimeoutError:
        if not subscription.future.done():
            await _last_look(dispatcher, subscription)
        if subscription.future.done():
            return subscription.future.result()
        raise


async def _last_look(dispatcher: Dispatcher, subscription: Subscription) -> None:
    try:
        async with asyncio.timeout(LAST_LOOK):
            await dispatcher.look(subscription.watch, {subscription.primary_key})
    except OUTAGES:
        return  # the time is over all the same


def _complaint(
    shape: RowShape, key: PrimaryKey, attributes: Sequence[str] | None, timeout: float | None
) -> str:
    shown = key if len(key) > 1 else key[0]
    columns = "any column" if attributes is None else ", ".join(attributes)
    return f"{shape.mapper.class_.__name__} {shown!r} did not change ({columns}) in {timeout} s."


async def _present(
    session: AsyncSession, shape: RowShape, held: Any, subscription: Subscription, found: Found
) -> Any:
    """Return the session's object for the row, showing at least what was found."""
    if held is None:
        held = await session.get(shape.mapper.class_, subscription.primary_key)
    elif _has_more_than_columns(held, shape):
        await session.refresh(held)
    if held is None:
        raise NotFoundError(
            f"{shape.mapper.class_.__name__} {subscription.primary_key} has changed, but this"
            " session's transaction can not see the row: it was deleted since, or inserted after"
            " the transaction's snapshot."
        )
    if not subscription.differs(_loaded_values(held, shape)):
        _overlay(held, shape, found)
    return held


def _has_more_than_columns(instance: object, shape: RowShape) -> bool:
    """Tell whether relationships and the like are loaded, which only a query can refresh."""
    state = inspect(instance, raiseerr=True)
    return not (state.dict.keys() & shape.mapper.attrs.keys()) <= shape.columns.keys()


def _overlay(instance: object, shape: RowShape, found: Found) -> None:
    state = inspect(instance, raiseerr=True)
    for name, value in zip(shape.columns, found.values, strict=True):
        if name in state.dict or not shape.mapper.column_attrs[name].deferred:
            set_committed_value(instance, name, value)


async def _detached(dispatcher: Dispatcher, target: Target, key: PrimaryKey) -> Any:
    """Load the object on our own connection: thousands of waits must not queue for the pool."""
    model = target.shape.mapper.class_
    options = {"schema_translate_map": target.shape.schema_translate_map or None}

    async def load(connection: AsyncConnection) -> Any:
        async with AsyncSession(connection, expire_on_commit=False) as session:
            instance = await session.get(
                model, key, options=[undefer("*")], execution_options=options
            )
            session.expunge_all()
            return instance

    instance = await dispatcher.listener.own.run(load, timeout=dispatcher.pace.answer)
    if instance is None:
        raise NotFoundError(f"{model.__name__} {key} was deleted just after it had changed.")
    return instance
