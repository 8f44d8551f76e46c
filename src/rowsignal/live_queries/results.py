"""Results of a statement: rows, the tables that were read, and comparison of results."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, Table, event, inspect
from sqlalchemy.engine import Row
from sqlalchemy.exc import InvalidRequestError, NoInspectionAvailable
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import InstanceState
from sqlalchemy.sql import visitors
from sqlalchemy.sql.elements import ClauseElement

TableName = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Result:
    """Detached rows, a fingerprint to compare them, and the tables that were read."""

    rows: list[Any]
    fingerprint: object
    tables: frozenset[TableName]


async def read(engine: AsyncEngine, statement: Select[Any], *, is_unique: bool) -> Result:
    """Run a statement in a session of its own.

    A statement of one entity or column returns its values, of several returns rows. `is_unique`
    removes duplicate entities, as joined eager loading of collections requires.
    """
    tables: set[TableName] = set()
    async with engine.connect() as connection:
        _note_tables(connection, tables)
        async with AsyncSession(connection, expire_on_commit=False) as session:
            result = await session.execute(statement)
            if len(statement.column_descriptions) == 1:
                values = result.scalars()
                rows: list[Any] = list(values.unique() if is_unique else values)
            else:
                rows = list(result.unique() if is_unique else result)
            session.expunge_all()
    return Result(rows, fingerprint(rows), frozenset(tables))


async def read_as_needed(
    engine: AsyncEngine, statement: Select[Any], *, is_unique: bool
) -> tuple[Result, bool]:
    """Run a statement, with unique entities if SQLAlchemy requires it."""
    try:
        return await read(engine, statement, is_unique=is_unique), is_unique
    except InvalidRequestError:
        if is_unique:
            raise
        return await read(engine, statement, is_unique=True), True


def _note_tables(connection: AsyncConnection, tables: set[TableName]) -> None:
    """Collect the tables of all statements on a connection, including those of the ORM."""

    def note(
        _connection: Any, _cursor: Any, _sql: Any, _values: Any, context: Any, _many: Any
    ) -> None:
        compiled = getattr(context, "compiled", None)
        state = getattr(compiled, "compile_state", None)
        translation = context.execution_options.get("schema_translate_map") or {}
        for found in (getattr(compiled, "statement", None), getattr(state, "statement", None)):
            if isinstance(found, ClauseElement):
                tables.update(
                    (translation.get(table.schema, table.schema), table.name)
                    for table in visitors.iterate(found)
                    if isinstance(table, Table)
                )

    event.listen(connection.sync_connection, "before_cursor_execute", note)


def fingerprint(value: Any, seen: frozenset[int] = frozenset()) -> object:
    """Return a value that is equal for equal results; for mapped objects, all loaded values."""
    if isinstance(value, list | tuple | set | frozenset | Row):
        return [fingerprint(item, seen) for item in value]
    if isinstance(value, dict):
        return {key: fingerprint(item, seen) for key, item in value.items()}
    state = _state_of(value)
    if state is None:
        return "NaN" if value != value else value
    if id(value) in seen:
        return state.identity
    within = seen | {id(value)}
    return type(value), [
        (name, fingerprint(item, within)) for name, item in sorted(_loaded(state).items())
    ]


def _state_of(value: Any) -> InstanceState[Any] | None:
    try:
        state = inspect(value)
    except NoInspectionAvailable:
        return None
    return state if isinstance(state, InstanceState) else None


def _loaded(state: InstanceState[Any]) -> dict[str, Any]:
    names = [attribute.key for attribute in state.mapper.attrs]
    return {name: state.dict[name] for name in names if name in state.dict}


def key_of(statement: Select[Any], *pace: float) -> object:
    """Return a key that equal statements share; the statement itself if there is none."""
    key = statement._generate_cache_key()  # the only key that includes loader options
    if key is None:
        return id(statement)
    values: Sequence[Any] = [parameter.effective_value for parameter in key.bindparams]
    return key.key, repr(values), pace
