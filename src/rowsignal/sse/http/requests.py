"""The tables and filters of a request, checked against the grant of its reader."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rowsignal.changes import Operation
from rowsignal.exceptions import FilterError, NotFoundError, NotPermittedError
from rowsignal.payload import PayloadError, decode_json
from rowsignal.sse.access.column_types import Number, kind_of
from rowsignal.sse.access.events import RowKey
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.access.filters import Condition, parse_where
from rowsignal.sse.access.grants import Grant, TableGrant
from rowsignal.sse.access.views import TableView

logger = logging.getLogger("rowsignal.sse")

MAX_TABLES = 50
MAX_KEYS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """The filters of a request, as text. In a stream of several tables each filter names its table.

    `public.orders:status.eq.paid` is a condition for `public.orders`.
    """

    pk: Sequence[str] = ()
    operations: Sequence[str] = ()
    columns: Sequence[str] = ()
    where: Sequence[str] = ()


def find(name: str, exposures: Mapping[str, Exposure], grant: Grant) -> Exposure:
    """Return an offered table by name, with or without its schema.

    Raises the same `NotFoundError` for a missing table and for one that this reader may not see.
    """
    found = [exposures[name]] if name in exposures else []
    found = found or [it for it in exposures.values() if it.table.name == name]
    granted = [exposure for exposure in found if grant.for_table(exposure.name) is not None]
    if len(granted) != 1:
        raise NotFoundError(f"There is no table {name!r} here, or it is not yours to see.")
    return granted[0]


def views_of(exposures: Sequence[Exposure], grant: Grant, ask: Ask) -> tuple[TableView, ...]:
    """Return the views of a request; raise `FilterError` if a filter does not fit."""
    if not exposures:
        raise FilterError("Name a table: ?table=public.orders.")
    if len(exposures) > MAX_TABLES:
        raise FilterError(f"A stream has at most {MAX_TABLES} tables.")
    names = [exposure.name for exposure in exposures]
    sorted_out = {
        "pk": _by_table(ask.pk, names),
        "columns": _by_table(_listed(ask.columns), names),
        "where": _by_table(ask.where, names),
    }
    operations = _operations(ask.operations)
    return tuple(
        _view(
            exposure,
            grant.for_table(exposure.name) or TableGrant(),
            {kind: texts[exposure.name] for kind, texts in sorted_out.items()},
            operations,
        )
        for exposure in exposures
    )


def _view(
    exposure: Exposure,
    grant: TableGrant,
    texts: Mapping[str, Sequence[str]],
    operations: frozenset[Operation] | None,
) -> TableView:
    shown = exposure.columns if grant.columns is None else exposure.columns & grant.columns
    asked = operations if grant.operations is None else grant.operations
    if operations is not None and grant.operations is not None:
        asked = operations & grant.operations
    table = exposure.table
    return TableView(
        name=exposure.name,
        columns=None if grant.columns is None else shown,
        operations=asked,
        changed=_columns(texts["columns"], shown),
        keys=_keys(texts["pk"], exposure, shown),
        permission=_permission(grant, exposure),
        asked=parse_where(texts["where"], table, shown),
    )


def _permission(grant: TableGrant, exposure: Exposure) -> tuple[Condition, ...]:
    table = exposure.table
    try:
        return parse_where(grant.where, table, table.c.keys())
    except FilterError as error:  # its message names columns that the reader may not see
        logger.warning("a grant does not fit %s: %s", exposure.name, error)
        raise NotPermittedError(
            f"The conditions of your grant do not fit {exposure.name}."
        ) from None


def _by_table(texts: Iterable[str], names: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {name: [] for name in names}
    for text in texts:
        name, colon, rest = text.partition(":")
        if colon and name in found:
            found[name].append(rest)
        elif len(names) == 1:
            found[names[0]].append(text)
        else:
            raise FilterError(f"Say which table {text!r} is about: {names[0]}:{text}, for example.")
    return found


def _listed(texts: Iterable[str]) -> list[str]:
    """Split comma lists; a table in front applies to its whole list."""
    items = []
    for text in texts:
        name, colon, rest = text.rpartition(":")
        items += [f"{name}{colon}{item}" for item in rest.split(",") if item]
    return items


def _operations(texts: Iterable[str]) -> frozenset[Operation] | None:
    names = [name for text in texts for name in text.split(",") if name]
    try:
        return frozenset(Operation(name) for name in names) if names else None
    except ValueError as error:
        raise FilterError(f"{error}: there are {', '.join(Operation)}.") from error


def _columns(names: Iterable[str], shown: frozenset[str]) -> frozenset[str] | None:
    wanted = frozenset(names)
    if unknown := sorted(wanted - shown):
        raise FilterError(f"{unknown[0]!r} is not a column here: {', '.join(sorted(shown))}.")
    return wanted or None


def _keys(
    texts: Sequence[str], exposure: Exposure, shown: frozenset[str]
) -> frozenset[RowKey] | None:
    if len(texts) > MAX_KEYS:
        raise FilterError(f"At most {MAX_KEYS} rows can be asked for by key.")
    return frozenset(key_of(text, exposure, shown) for text in texts) if texts else None


def key_of(text: str, exposure: Exposure, shown: frozenset[str] | None = None) -> RowKey:
    """Parse a primary key: the value itself, or a JSON array for several columns.

    Raises `FilterError` if key columns are not `shown`: a reader could guess their values.
    """
    if not (exposure.columns if shown is None else shown).issuperset(exposure.key):
        raise FilterError(f"The key of {exposure.name} is not shown here, so no key can be named.")
    columns = list(exposure.table.primary_key)
    if len(columns) == 1:
        return (_key_value(text, columns[0]),)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        values = error
    if not isinstance(values, list) or len(values) != len(columns):
        raise FilterError(
            f"The key of {exposure.name} is a JSON array with values for"
            f" {', '.join(exposure.key)}; {text!r} is not."
        )
    pairs = zip(values, columns, strict=True)
    return tuple(_key_value(_text(value), column) for value, column in pairs)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _key_value(text: str, column: Any) -> Any:
    """Return a key value in the form of changes: numbers and booleans as such, the rest as text."""
    try:
        kind = kind_of(column)
    except FilterError:
        return _plain(text, column)
    value = kind.parse(text)
    # Keys are compared with those of changes, where the server has written them.
    if kind.name in {"integer", "boolean"}:
        return value
    if isinstance(value, Number):
        return _number(text)
    return str(value) if kind.name == "uuid" else text


def _plain(text: str, column: Any) -> str:
    """Return a text that PostgreSQL can read for a type that is unknown here."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError(f"{text!r} is not a value of {column.name}.")
    return text


def _number(text: str) -> Any:
    try:
        return decode_json(text)
    except PayloadError as error:
        raise FilterError(f"{text!r} is not a number as JSON writes it.") from error
