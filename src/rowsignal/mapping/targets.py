"""The target of a wait: the caller's engine and session, and the session's objects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Table, inspect
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session, registry

from rowsignal.mapping.shapes import PrimaryKey, RowShape

Model = TypeVar("Model")
Source = AsyncSession | async_sessionmaker[Any] | AsyncEngine


@dataclass(frozen=True, slots=True)
class Target:
    """The engine to watch with, the shape of the rows, and the caller's session if there is one."""

    engine: AsyncEngine
    shape: RowShape
    session: AsyncSession | None

    @classmethod
    def of(cls, source: Source, model: type[Any]) -> "Target":
        """Find the engine that `source` uses for a model, with its schema translation."""
        mapper = mapper_of(model)
        if isinstance(source, AsyncEngine):
            return cls(source, RowShape(mapper, _translation(source.sync_engine)), None)
        if isinstance(source, async_sessionmaker):
            target = cls.of(source(), model)
            return cls(target.engine, target.shape, None)
        if not isinstance(source, AsyncSession):
            raise TypeError(
                f"{type(source).__name__} cannot wait: pass an AsyncSession, an"
                " async_sessionmaker or an AsyncEngine."
            )
        bind = source.sync_session.get_bind(mapper)
        return cls(AsyncEngine(bind.engine), RowShape(mapper, _translation(bind)), source)


def mapper_of(model: type[Any]) -> Mapper[Any]:
    """Return a model's mapper; raise `TypeError` for a class that is not mapped."""
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise TypeError(f"{model!r} is not a mapped class: pass a model, such as Order.")
    return mapper


def class_for(table: Table) -> type[Any]:
    """Return a new class mapped to a table that has none: waits and streams work on those."""
    model: type[Any] = type(table.name, (), {})
    registry().map_imperatively(model, table)
    return model


def attributes_of(
    shape: RowShape, columns: Sequence[InstrumentedAttribute[Any] | str] | None
) -> tuple[str, ...] | None:
    """Return attribute names for columns given as attributes or names; None stands for all."""
    if columns is None:
        return None
    if not isinstance(columns, list | tuple | set | frozenset) or not columns:
        raise ValueError(
            "columns is a non-empty list of columns, such as [Order.status], or None for all."
        )
    names = [
        column if isinstance(column, str) else getattr(column, "key", None) for column in columns
    ]
    unknown = [name for name in names if name is None or name not in shape.columns]
    if unknown:
        raise ValueError(
            f"{shape.mapper.class_.__name__} has no column {unknown[0]!r}; it has"
            f" {', '.join(shape.columns)}."
        )
    return tuple(dict.fromkeys(map(str, names)))


def _translation(bind: Engine | Connection) -> tuple[tuple[str | None, str | None], ...]:
    options = bind.get_execution_options()
    schemas: Mapping[str | None, str | None] = options.get("schema_translate_map") or {}
    return tuple(sorted(schemas.items(), key=repr))


def held_instance(session: AsyncSession, mapper: Mapper[Model], key: PrimaryKey) -> Model | None:
    """Return the object that a session already holds for a primary key."""
    try:
        held = session.sync_session.identity_map.get(mapper.identity_key_from_primary_key(key))
    except TypeError:  # a key that cannot be hashed, such as JSON: no session can hold its row
        return None
    return held if held is not None and isinstance(held, mapper.class_) else None


def has_deleted(session: Session, mapper: Mapper[Any], key: PrimaryKey) -> bool:
    """Tell whether the session's open transaction deletes a row, flushed or not."""
    doomed = [inspect(instance, raiseerr=True) for instance in session.deleted]
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        doomed += list(transaction._deleted)  # SQLAlchemy keeps no public record of it
        transaction = transaction.parent
    identity = mapper.identity_key_from_primary_key(key)
    return any(state.key == identity for state in doomed)


def has_flushed(session: Session, instance: object) -> bool:
    """Tell whether the session's open transaction has written an object."""
    state = inspect(instance)
    transaction = session.get_nested_transaction() or session.get_transaction()
    while transaction is not None:
        # SQLAlchemy keeps no public record of what was flushed.
        for written in (transaction._new, transaction._dirty, transaction._deleted):
            if state in written:
                return True
        transaction = transaction.parent
    return False
