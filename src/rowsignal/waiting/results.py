"""The result of a wait: the session's object, or a detached one, with the values that ended it."""

import asyncio
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncSession

from rowsignal.dispatcher import (
    UNREAD,
    Dispatcher,
    RowState,
    Satisfies,
    Subscription,
    build_instance,
    key_parameters,
    loaded_values,
    overlay,
)
from rowsignal.exceptions import NotFoundError
from rowsignal.mapping import PrimaryKey, RowShape, held_instance
from rowsignal.waiting.arguments import shown
from rowsignal.waiting.sessions import SessionView, keep_outside_values

GRACE = 2.0  # seconds to load the result after the timeout


async def attached(
    session: AsyncSession, view: SessionView, subscription: Subscription, found: RowState
) -> Any:
    """Return the session's object for the row, with at least the values that were read."""
    shape = view.target.shape
    instance = await _refreshed(session, shape, subscription, found)
    # Or the next wait of this transaction would end at once, at the same difference.
    if view.is_snapshot:
        keep_outside_values(view, subscription.row_id, _values(shape, found))
    if view.is_snapshot or not _shows_it(subscription, instance):
        overlay(instance, shape, found)
    return instance


async def _refreshed(
    session: AsyncSession, shape: RowShape, subscription: Subscription, found: RowState
) -> Any:
    if subscription.row_id is not subscription.primary_key:
        return build_instance(shape, found)  # a session cannot hold a key that is not hashable
    instance = held_instance(session, shape.mapper, subscription.primary_key)
    if instance is None:
        instance = await _loaded(session, shape, subscription.primary_key)
    elif _has_more_than_columns(instance, shape):
        await session.refresh(instance)
    if instance is None:
        raise NotFoundError(
            f"{shape.mapper.class_.__name__} {shown(subscription.primary_key)!r} has changed, but"
            " this session's transaction cannot see the row: it was deleted since, or inserted"
            " after the transaction's snapshot."
        )
    return instance


async def _loaded(session: AsyncSession, shape: RowShape, key: PrimaryKey) -> Any:
    instance = await session.get(shape.mapper.class_, key)
    if instance is None:  # `get` compares a real with a double: 0.1 is another number then
        options = {"schema_translate_map": shape.schema_translate_map or None}
        with session.no_autoflush:
            result = await session.execute(
                shape.entity_query, key_parameters([key]), execution_options=options
            )
        for _, found in result.unique():
            instance = found
    return instance


async def detached(
    dispatcher: Dispatcher, subscription: Subscription, found: RowState, deadline: float | None
) -> Any:
    """Return a detached object with all columns loaded, without a connection of the pool.

    For plain models the values of the read are enough. Other objects are loaded, many in one query;
    if PostgreSQL does not answer before the deadline, the object has the columns that were read.
    """
    shape = subscription.watch.shape
    is_hashable = subscription.row_id is subscription.primary_key
    if not is_hashable or (shape.is_plain and UNREAD not in map(_unread, found.values)):
        return build_instance(shape, found)
    now = asyncio.get_running_loop().time()
    try:
        # The condition was met in time: its result may take a little longer.
        async with asyncio.timeout_at(None if deadline is None else max(deadline, now + GRACE)):
            instance = await dispatcher.load(shape, subscription.primary_key)
    except TimeoutError:
        return build_instance(shape, found)
    if instance is None:
        raise NotFoundError(
            f"{shape.mapper.class_.__name__} {shown(subscription.primary_key)!r} was deleted just"
            " after it had changed."
        )
    if not _shows_it(subscription, instance):
        overlay(instance, shape, found)
    return instance


def _unread(value: Any) -> Any:
    return UNREAD if value is UNREAD else None


def _values(shape: RowShape, found: RowState) -> dict[str, Any]:
    pairs = zip(shape.columns, found.values, strict=True)
    return {name: value for name, value in pairs if value is not UNREAD}


def _shows_it(subscription: Subscription, instance: Any) -> bool:
    """Tell whether an object loaded after the read still meets the condition of the wait."""
    condition = subscription.condition
    if condition.is_comparing:
        return subscription.differs(loaded_values(instance, subscription.watch.shape))
    if isinstance(condition, Satisfies):
        try:
            return condition.accepts(instance)
        except Exception:  # noqa: BLE001 -- it said yes to the row as found: show that
            return False
    return False


def _has_more_than_columns(instance: object, shape: RowShape) -> bool:
    """Tell whether relationships or a subclass's columns are loaded: a query refreshes them."""
    state = inspect(instance, raiseerr=True)
    return not (state.dict.keys() & state.mapper.attrs.keys()) <= shape.columns.keys()
