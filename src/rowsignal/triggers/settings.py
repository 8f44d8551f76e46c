"""Trigger settings: which triggers a table gets, for which columns."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, TypedDict, TypeVar, Unpack

from sqlalchemy import Column, MetaData, Table, inspect
from sqlalchemy.orm import InstrumentedAttribute, Mapper
from sqlalchemy.sql.elements import KeyedColumnElement

TableName = tuple[str | None, str]
ColumnLike = InstrumentedAttribute[Any] | KeyedColumnElement[Any] | str
Model = TypeVar("Model", bound=type)


class TriggerOptions(TypedDict, total=False):
    """The options of `install_triggers` and `watched`; `TriggerSettings` says what each does.

    Columns are given as attributes or as their names. A function of your own that passes options
    on takes `**options: Unpack[TriggerOptions]`.
    """

    log: bool
    columns: Sequence[ColumnLike] | None
    exclude: Sequence[ColumnLike] | None
    row_values: bool
    filter_columns: Sequence[ColumnLike] | None
    always: bool
    notify: bool


SWITCHES = ("log", "row_values", "always", "notify")
INFO = "rowsignal"  # in MetaData.info: Alembic would write Table.info into every migration


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSettings:
    """The capture settings of a table.

    `log` writes them to the change log; without it they are sent as hints. Only changes of
    `columns` (None: all) are captured, changes of `exclude` are not. `row_values` logs whole rows,
    without the excluded columns; `filter_columns` logs old and new values of the columns that
    readers filter by. `always` sends hints even if no listener is armed. `notify=False` is for
    logged tables written in two-phase commits, which NOTIFY forbids: readers poll.
    """

    log: bool = False
    columns: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    row_values: bool = False
    filter_columns: tuple[str, ...] | None = None
    always: bool = False
    notify: bool = True

    def __post_init__(self) -> None:
        """Refuse settings without effect."""
        for name in SWITCHES:
            if not isinstance(value := getattr(self, name), bool):
                raise TypeError(f"{name}={value!r}: give True or False.")
        if self.columns is not None and self.exclude is not None:
            raise ValueError("columns and exclude contradict each other: give one of them.")
        if self.columns is not None and not self.columns:
            raise ValueError(
                "columns is empty: no change would count. Leave it out for all columns."
            )
        logged_only = {
            "row_values": self.row_values,
            "filter_columns": self.filter_columns is not None,
            "notify=False": not self.notify,
        }
        for name, is_given in logged_only.items():
            if is_given and not self.log:
                raise ValueError(
                    f"{name} needs log=True: hints carry no values and are notifications."
                )
        if self.always and self.log:
            raise ValueError("always=True is for hints: a logged table keeps every change anyway.")

    def to_json(self) -> str:
        """Return the settings as triggers store them, without defaults."""
        given: dict[str, object] = {"log": True} if self.log else {}
        for key, names in (
            ("columns", self.columns),
            ("exclude", self.exclude),
            ("filter", self.filter_columns),
        ):
            # Sorted: equal settings must be equal texts, or status would tell of a difference.
            given |= {key: sorted(names)} if names else {}
        given |= {"row_values": True} if self.row_values else {}
        given |= {"always": True} if self.always else {}
        given |= {} if self.notify else {"notify": False}
        return json.dumps(given, sort_keys=True)


@dataclass(frozen=True, slots=True)
class Declaration:
    """The declared settings of a model, with columns as they were written."""

    model: type
    options: TriggerOptions


@dataclass(frozen=True, slots=True)
class Target:
    """A table to install triggers on; with `settings` None its present triggers are right."""

    name: TableName
    settings: TriggerSettings | None = None


def watched(**options: Unpack[TriggerOptions]) -> Callable[[Model], Model]:
    """Declare how the changes of a model are captured.

    Takes the options of `install_triggers`; columns are named as attributes of the model.
    `install_triggers(bind, Base)` then installs the declared models, and those only.

    >>> from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
    >>> class Base(DeclarativeBase): ...
    >>> @watched(log=True, columns=["status"])
    ... class Order(Base):
    ...     __tablename__ = "orders"
    ...     id: Mapped[int] = mapped_column(primary_key=True)
    ...     status: Mapped[str]
    >>> [target.name for target in targets_of(Base)]
    [(None, 'orders')]
    """
    check_options(options)

    def declare(model: Model) -> Model:
        table = table_of(model)
        declared = table.metadata.info.setdefault(INFO, {})
        declared[table.key] = Declaration(model, options)
        return model

    return declare


def table_of(what: Any) -> Table:
    """Return the table of a model; raise `TypeError` if it has none."""
    table = what if isinstance(what, Table) else getattr(what, "__table__", None)
    if not isinstance(table, Table):
        raise TypeError(f"{what!r} is not a table: pass a declarative base, models or tables.")
    return table


def targets_of(what: Any, **options: Unpack[TriggerOptions]) -> list[Target]:
    """Return the tables of a base, a metadata, a model, a table, a name or several of them.

    Of a base or metadata these are the models declared with `watched`, or all tables when there is
    no such declaration. `options` given here win over declared ones.
    """
    if isinstance(what, str):
        schema, _, name = what.rpartition(".")
        return [Target((schema or None, name), settings_of(None, options))]
    if isinstance(what, Iterable) and not hasattr(what, "__table__"):
        return [target for item in what for target in targets_of(item, **options)]
    metadata = what if isinstance(what, MetaData) else getattr(what, "metadata", None)
    if isinstance(what, Table) or getattr(what, "__table__", None) is not None:
        return [_target(table_of(what), what, options)]
    if not isinstance(metadata, MetaData):
        raise TypeError(f"{what!r} is not a table: pass a declarative base, models or tables.")
    declared = metadata.info.get(INFO, {})
    tables = [table for table in metadata.sorted_tables if table.key in declared or not declared]
    return [_target(table, None, options) for table in tables]


def _target(table: Table, what: Any, options: TriggerOptions) -> Target:
    declaration: Declaration | None = table.metadata.info.get(INFO, {}).get(table.key)
    declared = declaration.options if declaration else TriggerOptions()
    model = declaration.model if declaration else what if isinstance(what, type) else None
    source = model if model is not None else table
    return Target((table.schema, table.name), settings_of(source, declared | options))


def check_options(given: Mapping[str, object]) -> None:
    """Raise `TypeError` for a name that is no option, with the one that may be meant."""
    known = TriggerOptions.__annotations__
    for name in given:
        if name not in known:
            close = get_close_matches(name, known, 1)
            meant = f"did you mean {close[0]!r}? " if close else ""
            raise TypeError(f"{name!r} is no option: {meant}There are {', '.join(known)}.")


def settings_of(source: Any, given: TriggerOptions) -> TriggerSettings:
    """Return settings with columns by their names in the database."""
    check_options(given)
    names: dict[str, Any] = dict(given)
    for key in ("columns", "exclude", "filter_columns"):
        if names.get(key) is not None:
            names[key] = _column_names(source, names[key])
    return TriggerSettings(**names)


def _column_names(source: Any, columns: Sequence[ColumnLike]) -> tuple[str, ...]:
    if isinstance(columns, str):
        raise TypeError(f"columns is a list of columns, not the string {columns!r}.")
    known = _known_columns(source)
    found = []
    for column in columns:
        key = column if isinstance(column, str) else column.key
        if known is not None and key not in known:
            raise ValueError(f"{_label(source)} has no column {key!r}; it has {', '.join(known)}.")
        found.append(known[key] if known is not None else str(key))
    return tuple(dict.fromkeys(found))


def _known_columns(source: Any) -> dict[str, str] | None:
    if source is None:
        return None
    if isinstance(source, Table):
        return {column.key: column.name for column in source.columns}
    mapper: Mapper[Any] = inspect(source)
    return {
        attribute.key: column.name
        for attribute in mapper.column_attrs
        for column in attribute.columns[:1]
        if isinstance(column, Column)
    }


def _label(source: Any) -> str:
    return source.fullname if isinstance(source, Table) else str(source.__name__)
