"""Detached objects, made of rows that were read, for callers that wait without a session."""

import copy
from collections.abc import Sequence
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session, make_transient_to_detached, selectin_polymorphic, undefer
from sqlalchemy.orm.attributes import set_committed_value

from rowsignal.dispatcher.row_query import UNREAD, RowState, key_parameters
from rowsignal.mapping import PrimaryKey, RowShape


def build_instance(shape: RowShape, found: RowState) -> Any:
    """Return a detached object with the values that were read; other attributes are not loaded."""
    instance = shape.mapper.class_manager.new_instance()
    _set_values(instance, shape, found, shape.columns)
    make_transient_to_detached(instance)
    return instance


def overlay(instance: Any, shape: RowShape, found: RowState) -> None:
    """Set the values that were read on an object, as loaded values."""
    loaded = inspect(instance, raiseerr=True).dict
    names = [name for name in shape.columns if name in loaded or name in shape.eager_attributes]
    _set_values(instance, shape, found, names)


def loaded_values(instance: Any, shape: RowShape) -> dict[str, Any]:
    """Return the values of the columns that an object has loaded."""
    loaded = inspect(instance, raiseerr=True).dict
    return {name: own(loaded[name]) for name in shape.columns if name in loaded}


def own(value: Any) -> Any:
    """Return a copy of a mutable value."""
    return copy.deepcopy(value) if isinstance(value, dict | list | bytearray) else value


async def load_instances(
    connection: AsyncConnection, shape: RowShape, keys: Sequence[PrimaryKey]
) -> list[Any]:
    """Return a new detached object for each key, all columns loaded; None if there is no row."""
    async with AsyncSession(connection, expire_on_commit=False) as session:
        result = await session.execute(
            shape.entity_query.options(undefer("*"), *_of_children(shape)),
            key_parameters(keys),
            execution_options={"schema_translate_map": shape.schema_translate_map or None},
        )
        loaded: list[Any] = [None] * len(keys)
        given: set[int] = set()
        for ordinal, instance in result.unique():
            # Two waits for one row get an object each: each caller may change its own.
            loaded[ordinal - 1] = instance if id(instance) not in given else _copy(instance)
            given.add(id(instance))
        session.expunge_all()
        return loaded


def _of_children(shape: RowShape) -> list[Any]:
    """Return the options that load the columns of subclasses, if there are any."""
    mapper = shape.mapper
    children = [one.class_ for one in mapper.self_and_descendants if one is not mapper]
    return [selectin_polymorphic(mapper.class_, children)] if children else []


def _copy(instance: Any) -> Any:
    with Session(expire_on_commit=False) as session:
        # merge copies loaded relationships as well, without a query.
        copied = session.merge(instance, load=False)
        session.expunge_all()
        return copied


def _set_values(instance: Any, shape: RowShape, found: RowState, names: Any) -> None:
    values = dict(zip(shape.columns, found.values, strict=True))
    for name in names:
        if values[name] is not UNREAD:
            # Copied: callers that change a dict in place would change the baseline of others.
            set_committed_value(instance, name, own(values[name]))
