"""What a caller of a wait hands in: a session or less, a model, a key, columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import inspect
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import InstrumentedAttribute, Mapper, Session

from rowsignal.row_reader import PrimaryKey, RowShape

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
                f"{type(source).__name__} can not wait: pass an AsyncSession, an"
                " async_sessionmaker or an AsyncEngine."
            )
        bind = source.sync_session.get_bind(mapper)
        return cls(AsyncEngine(bind.engine), RowShape(mapper, _translation(bind)), source)


def mapper_of(model: type[Any]) -> Mapper[Any]:
    """Return a model's mapper; `TypeError` for what is not a mapped class."""
    try:
        mapper = inspect(model)
    except NoInspectionAvailable:
        mapper = None
    if not isinstance(mapper, Mapper):
        raise TypeError(f"{model!r} is not a mapped class: pass a model, such as Order.")
    return mapper


def primary_key_of(mapper: Mapper[Any], value: object) -> PrimaryKey:
    """Return a primary key as a tuple, from a scalar, a tuple or a dict by attribute name."""
    names = [mapper.get_property_by_column(column).key for column in mapper.primary_key]
    if isinstance(value, Mapping):
        if set(value) != set(names):
            raise ValueError(
                f"{mapper.class_.__name__} has the primary key {names}, not {sorted(value)}."
            )
        return tuple(value[name] for name in names)
    parts = tuple(value) if isinstance(value, tuple | list) else (value,)
    if len(parts) != len(names):
        raise ValueError(
            f"{mapper.class_.__name__} has the primary key {names}: pass {len(names)} value(s),"
            f" not {len(parts)}."
        )
    if any(part is None for part in parts):
        raise ValueError(f"A primary key of {mapper.class_.__name__} can not hold None.")
    return parts


def attributes_of(
    shape: RowShape, columns: Sequence[InstrumentedAttribute[Any] | str] | None
) -> tuple[str, ...] | None:
    """Return attribute names for columns given as attributes or names; None stands for all."""
    if columns is None:
        return None
    if isinstance(columns, str) or not columns:
        raise ValueError("columns is a non-empty list of columns, or None for all of them.")
    names = [column if isinstance(column, str) else column.key for column in columns]
    unknown = [name for name in names if name not in shape.columns]
    if unknown:
        raise ValueError(
            f"{shape.mapper.class_.__name__} has no column {unknown[0]!r}; it has"
            f" {', '.join(shape.columns)}."
        )
    return tuple(dict.fromkeys(names))


def _translation(bind: Engine | Connection) -> tuple[tuple[str | None, str | None], ...]:
    options = bind.get_execution_options()
    schemas: Mapping[str | None, str | None] = options.get("schema_translate_map") or {}
    return tuple(sorted(schemas.items(), key=repr))


def held_instance(session: AsyncSession, mapper: Mapper[Model], key: PrimaryKey) -> Model | None:
    """Return the object that a session already holds for a primary key."""
    held = session.sync_session.identity_map.get(mapper.identity_key_from_primary_key(key))
    return held if held is not None and isinstance(held, mapper.class_) else None


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
