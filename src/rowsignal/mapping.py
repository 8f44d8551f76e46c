"""What a model maps to: rows, keys and columns, and the engine that a caller reads them with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, repeat
from typing import Any, TypeVar

from sqlalchemy import (
    ARRAY,
    BindParameter,
    Column,
    Select,
    Table,
    and_,
    bindparam,
    func,
    inspect,
    literal_column,
    null,
    select,
)
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import ColumnProperty, InstrumentedAttribute, Mapper, Session
from sqlalchemy.sql.expression import ColumnElement

Model = TypeVar("Model")
PrimaryKey = tuple[Any, ...]
KeyColumns = tuple[tuple[str, ...] | None, ...]  # for each table: the key that its hints carry
Source = AsyncSession | async_sessionmaker[Any] | AsyncEngine


@dataclass(frozen=True)
class RowShape:
    """What there is to read of a model: columns, primary key and tables.

    `translation` is SQLAlchemy's `schema_translate_map`. Two shapes of the same model and
    translation are equal.
    """

    mapper: Mapper[Any]
    translation: tuple[tuple[str | None, str | None], ...] = ()

    @cached_property
    def columns(self) -> dict[str, Column[Any]]:
        """Return the mapped columns by attribute name; SQL expressions are not among them."""
        found: dict[str, Column[Any]] = {}
        for attribute in self.mapper.column_attrs:
            column = attribute.columns[0]
            if isinstance(column, Column):
                found[attribute.key] = column
        return found

    @cached_property
    def tables(self) -> tuple[Table, ...]:
        """Return the tables whose rows make up one object; joined inheritance has several."""
        return tuple(table for table in self.mapper.tables if isinstance(table, Table))

    @property
    def schema_translate_map(self) -> Mapping[str | None, str | None]:
        """Return the translation as SQLAlchemy takes it."""
        return dict(self.translation)

    def name_of(self, table: Table) -> tuple[str | None, str]:
        """Return a table's schema (None: found by search_path) and name, translated."""
        return self.schema_translate_map.get(table.schema, table.schema), table.name

    def names_in_database(self, attributes: Sequence[str]) -> frozenset[str]:
        """Return the database's names of the columns behind attributes."""
        names = set[str]()
        for attribute in attributes:
            prop = self.mapper.attrs[attribute]
            if isinstance(prop, ColumnProperty):
                names.update(column.name for column in prop.columns if isinstance(column, Column))
        return frozenset(names)

    def query(self, key_columns: KeyColumns = ()) -> Select[Any]:
        """Return the query for rows by primary key, and for their keys as triggers say them."""
        if key_columns not in self._queries:
            self._queries[key_columns] = self._make_query(key_columns)
        return self._queries[key_columns]

    @cached_property
    def _queries(self) -> dict[KeyColumns, Select[Any]]:
        return {}

    def _make_query(self, key_columns: KeyColumns) -> Select[Any]:
        # By ordinal, not by value: equal keys may look different (citext, char(n), 1.0 and 1.00).
        primary = self.mapper.primary_key
        names = [f"k{number}" for number in range(len(primary))]
        waited = (
            func.unnest(
                *(_array(name, column) for name, column in zip(names, primary, strict=True))
            )
            .table_valued(*names, with_ordinality="n", name="waited")
            .render_derived()
        )
        same: list[ColumnElement[bool]] = [
            column == waited.c[name] for name, column in zip(names, primary, strict=True)
        ]
        keys = [_key(table, names) for table, names in zip(self.tables, key_columns, strict=False)]
        return (
            select(waited.c.n, *self.columns.values(), *keys)
            .select_from(waited)
            .join(self.mapper.persist_selectable, and_(*same))
        )


def _key(table: Table, names: Sequence[str] | None) -> ColumnElement[Any]:
    """Return the key of a table's row in the words of its trigger, NULL where it has none."""
    by_name = {column.name: column for column in table.columns}
    if names is None or not by_name.keys() >= set(names):
        return null()
    return key_text([by_name[name] for name in names])


def key_text(values: Sequence[ColumnElement[Any]]) -> ColumnElement[str]:
    """Return the expression for a key as hints carry it: the text of a JSON array."""
    # Text: decoded by the driver, JSON would lose the difference of 1.0 and 1.00.
    marks = chain(["'['"], repeat("','"))
    parts: list[ColumnElement[Any]] = []
    for mark, value in zip(marks, values, strict=False):
        parts += literal_column(mark), func.rowsignal.key_value_v1(value)
    return func.concat(*parts, literal_column("']'"))


def _array(name: str, column: ColumnElement[Any]) -> BindParameter[Any]:
    return bindparam(name, type_=ARRAY(column.type))


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
