"""Reader of current rows in the form of changes: JSON values by column name.

Numbers with a point are `Decimal`; a value of a type that is not built in is its text, as its
output function writes it. No cast, operator or domain check of a table's owner runs here: `to_json`
and `::text` would look for a cast, `format` calls the output function alone.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    TableValuedAlias,
    and_,
    bindparam,
    case,
    cast,
    column,
    func,
    literal_column,
    or_,
    select,
    table,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, OID, TEXT, array
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.types import UserDefinedType

from rowsignal.identifiers import QualifiedName
from rowsignal.postgres.connections import beside, driver_of
from rowsignal.postgres.json_values import Values, decode_rows, key_value
from rowsignal.postgres.parameters import run_query
from rowsignal.postgres.statements import query

Condition = Callable[[FromClause], ColumnElement[bool]]

DIALECT = PGDialect_asyncpg()  # type: ignore[no-untyped-call]
PAGE = 500
NUMBER = "n"  # of a key among those asked for; key columns are called k0, k1, ...
FIRST_USER_OID = "16384"
# On these depends what a date, an interval, a float or a bytea looks like, and what a name means.
SETTINGS = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "postgres",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "lc_monetary": "C",
    "standard_conforming_strings": "on",
    "search_path": "pg_catalog, pg_temp",
}
JSON_TYPES = frozenset({114, 3802})
INTEGER_BITS = {21: 15, 23: 31, 20: 63}
BOOLEAN = 16
# Equal values of these types are written alike; the text types unless their collation says no.
TEXT_TYPES = frozenset({18, 19, 25, 1043})
EXACT_TYPES = frozenset({*INTEGER_BITS, BOOLEAN, 2950, 1082, 1114, 1184, 1083, *TEXT_TYPES})


@dataclass(frozen=True, slots=True)
class KeyColumn:
    """A column of a primary key: the type that a key is converted to, and the index's operator.

    `base` is the oid of that type, behind domains; `is_exact`: equal values have equal texts.
    """

    name: str
    type: str
    base: int
    equality: str
    is_exact: bool

    def accepts(self, value: object) -> bool:
        """Tell whether a value from a request may be a value of this column.

        PostgreSQL would refuse the whole query for one bad value.
        """
        if self.base in INTEGER_BITS:
            limit = 2 ** INTEGER_BITS[self.base]
            return type(value) is int and -limit <= value < limit
        if self.base == BOOLEAN:
            return isinstance(value, bool)
        return isinstance(value, int) or (isinstance(value, str) and _is_text(value))

    def image(self, value: Any) -> Any:
        """Return the form of a key's value in a query: documents as their text."""
        return _document(value) if self.base in JSON_TYPES else value


@dataclass(frozen=True, slots=True)
class TableShape:
    """A table whose rows are read, as the catalogue describes it.

    `plain_domains` are types that are converted like built-in ones; `has_row_security`: policies
    decide which rows the connection's role sees; `has_children`: rows of other tables (not
    partitions) are among its rows.
    """

    schema: str
    name: str
    oid: int
    columns: tuple[str, ...]
    key: tuple[KeyColumn, ...]
    plain_domains: tuple[int, ...] = ()
    has_row_security: bool = False
    has_children: bool = False

    @property
    def full_name(self) -> QualifiedName:
        """The schema and the name."""
        return self.schema, self.name

    @property
    def has_exact_key(self) -> bool:
        """Tell whether equal keys are written alike."""
        return all(part.is_exact for part in self.key)

    def accepts(self, key: Mapping[str, Any]) -> bool:
        """Tell whether a key from a request may be a key of this table."""
        if len(key) != len(self.key):
            return False
        for part in self.key:  # a generator would take as long again
            if part.name not in key or not part.accepts(key[part.name]):
                return False
        return True

    def source(self) -> FromClause:
        """Return the table for a query."""
        return table(self.name, *map(column, self.columns), schema=self.schema)


class Row(NamedTuple):
    """One row: its primary key in the form of changes, and the requested values."""

    key: Mapping[str, Any]
    values: Values


def _is_text(value: str) -> bool:
    return "\0" not in value and not any("\ud800" <= it <= "\udfff" for it in value)


def _document(value: Any) -> str:
    """Return a JSON document of a key's value, with arrays and objects as their text."""
    if isinstance(value, str):
        try:
            if isinstance(json.loads(value), dict | list | None):
                return value
        except (ValueError, RecursionError):
            return json.dumps(value)
    return json.dumps(value)


async def pin_settings(
    connection: AsyncConnection, *, is_local: bool, more: Mapping[str, str] | None = None
) -> None:
    """Set the settings that texts and names depend on; `is_local` ends with the transaction."""
    settings = {**SETTINGS, **(more or {})}
    calls = [func.pg_catalog.set_config(name, it, is_local) for name, it in settings.items()]
    await connection.execute(select(*calls))


@asynccontextmanager
async def one_view(engine: AsyncEngine, url: str | None = None) -> AsyncIterator[AsyncConnection]:
    """Open a new connection whose reads see one snapshot."""
    ours = beside(engine, url)
    try:
        async with ours.connect() as connection:
            yield await connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
    finally:
        await ours.dispose()


async def table_shapes(
    connection: AsyncConnection, names: Iterable[QualifiedName]
) -> dict[QualifiedName, TableShape]:
    """Return the shapes of tables by schema and name, without missing tables."""
    pairs = list(names)
    asked = [schema for schema, _ in pairs], [name for _, name in pairs]
    found = await run_query(connection, query("table_shapes"), asked)
    shapes = [_shape(dict(facts)) for facts in found.mappings()]
    return {shape.full_name: shape for shape in shapes}


def _shape(facts: Mapping[str, Any]) -> TableShape:
    return TableShape(
        schema=facts["schema"],
        name=facts["name"],
        oid=facts["oid"],
        columns=tuple(facts["columns"]),
        key=tuple(map(_key_column, json.loads(facts["key"] or "[]"))),
        plain_domains=tuple(facts["plain_domains"]),
        has_row_security=facts["has_row_security"],
        has_children=facts["has_children"],
    )


def _key_column(facts: dict[str, Any]) -> KeyColumn:
    base = facts["base"]
    is_exact = base in EXACT_TYPES and facts["is_deterministic"]
    return KeyColumn(facts["name"], facts["type"], base, facts["equality"], is_exact)


async def rows_by_key(
    connection: AsyncConnection,
    shape: TableShape,
    keys: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
) -> list[Row | None]:
    """Return the rows with these keys, in their order, in one query; None for a missing row.

    Keys are written as PostgreSQL writes them. The connection is asyncpg's, whose own errors are
    raised.
    """
    driver = await driver_of(connection)
    found = await driver.fetch(_by_key(shape, tuple(columns)), keys_as_json(shape, keys))
    texts = [it for _, it in found]
    if shape.has_exact_key:  # what was asked for is what is written
        asked = [keys[number] for number, _ in found]
        made = list(map(Row, asked, decode_rows(columns, texts)))
    else:
        made = _rows(shape, columns, texts)
    rows: list[Row | None] = [None] * len(keys)
    for (number, _), row in zip(found, made, strict=True):
        rows[number] = row
    return rows


async def all_rows(
    connection: AsyncConnection,
    shape: TableShape,
    columns: Sequence[str],
    condition: Condition | None = None,
    keys: Sequence[Mapping[str, Any]] | None = None,
) -> AsyncGenerator[list[Row], None]:
    """Yield the rows of a table in pages, in bounded memory.

    `condition` returns an expression over the table's columns, `keys` are the keys to read.
    """
    source = shape.source()
    names = (*_key_names(shape), *columns)
    statement = select(_texts(shape, names, source)).select_from(source)
    if condition is not None:
        statement = statement.where(condition(source))
    if keys is not None:
        given = given_keys(shape, bindparam("keys", keys_as_json(shape, keys), TEXT))
        statement = statement.join(given, has_given_key(shape, source, given))
    options = {"yield_per": PAGE}
    async with connection.stream(statement, execution_options=options) as result:
        async for page in result.partitions(PAGE):
            yield _rows(shape, columns, [texts for (texts,) in page])


def given_keys(shape: TableShape, keys: ColumnElement[Any]) -> TableValuedAlias:
    """Return keys, a JSON array as text, as a table of the key columns' types."""
    columns = [
        column(f"k{place}", _Named("text" if part.base in JSON_TYPES else part.type))
        for place, part in enumerate(shape.key)
    ]
    documents = func.jsonb_to_recordset(cast(keys, JSONB))
    given = documents.table_valued(column(NUMBER, Integer()), *columns, name="given")
    return given.render_derived(with_types=True)


def has_given_key(
    shape: TableShape, source: FromClause, given: TableValuedAlias
) -> ColumnElement[bool]:
    """Return the condition that a row has one of the given keys, by the index's own operators."""
    return and_(
        *(
            # By its qualified name, since an operator = on the search path may be of another role.
            source.c[part.name].op(f"operator({part.equality})", is_comparison=True)(
                cast(given.c[f"k{place}"], _Named(part.type))
                if part.base in JSON_TYPES
                else given.c[f"k{place}"]
            )
            for place, part in enumerate(shape.key)
        )
    )


def keys_as_json(shape: TableShape, keys: Iterable[Mapping[str, Any]]) -> str:
    """Return keys as the JSON array that `given_keys` takes."""
    parts = [(f"k{place}", part.name, part.image) for place, part in enumerate(shape.key)]
    named = [{name: image(key[column]) for name, column, image in parts} for key in keys]
    for number, key in enumerate(named):
        key[NUMBER] = number
    return json.dumps(named, default=str)


class _Named(UserDefinedType[Any]):
    """A type by the name that the catalogue gave."""

    cache_ok = True

    def __init__(self, name: str) -> None:
        self.name = name

    def get_col_spec(self, **_: Any) -> str:
        return self.name


@lru_cache(maxsize=500)
def _by_key(shape: TableShape, columns: tuple[str, ...]) -> str:
    """Return the statement; its only parameter is the keys."""
    source = shape.source()
    given = given_keys(shape, bindparam("keys", type_=TEXT))
    names = columns if shape.has_exact_key else (*_key_names(shape), *columns)
    statement = select(given.c[NUMBER], _texts(shape, names, source)).select_from(
        source.join(given, has_given_key(shape, source, given))
    )
    return str(statement.compile(dialect=DIALECT))


def _texts(shape: TableShape, columns: Iterable[str], source: FromClause) -> ColumnElement[Any]:
    """Return an array of the JSON texts of columns.

    A row value with one more column could be too wide, and a function takes too few arguments.
    """
    texts = [_as_json(source.c[name], shape.plain_domains) for name in columns]
    return array(texts, type_=TEXT) if texts else cast(literal_column("'{}'"), ARRAY(TEXT))


def _as_json(value: ColumnElement[Any], plain_domains: Sequence[int]) -> ColumnElement[Any]:
    """Return a value's JSON as text, by its type when the statement runs."""
    type_ = cast(func.pg_typeof(value), OID)
    is_plain = cast(type_, BigInteger) < literal_column(FIRST_USER_OID)
    if plain_domains:
        listed: ColumnElement[Any] = literal_column(
            f"'{{{','.join(map(str, plain_domains))}}}'::oid[]"
        )
        is_plain = or_(is_plain, type_ == func.any(listed))
    as_text = func.to_json(func.format(literal_column("'%s'"), value))
    chosen = case(
        (func.num_nulls(value) == literal_column("1"), None),
        (is_plain, func.to_json(value)),
        else_=as_text,
    )
    return cast(chosen, TEXT)


def _key_names(shape: TableShape) -> list[str]:
    return [part.name for part in shape.key]


def _rows(
    shape: TableShape, columns: Sequence[str], pages: Sequence[Sequence[str | None]]
) -> list[Row]:
    names, width = _key_names(shape), len(shape.key)
    keys = [dict(zip(names, map(key_value, texts), strict=False)) for texts in pages]
    values = decode_rows(columns, [texts[width:] for texts in pages])
    return list(map(Row, keys, values))
