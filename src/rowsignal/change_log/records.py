"""The records of the change log, and the `Change` objects made of them.

Most time of a long read is spent here, so a page is decoded at once: one JSON document for all its
keys, and fields set through their slots instead of a frozen dataclass's slow constructor.
"""

import json
import re
from collections.abc import Container, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from itertools import repeat
from typing import Any

from rowsignal.changes import Change, Operation
from rowsignal.postgres.json_values import Values, decode_mapping, short_integer

Record = tuple[Any, ...]  # asyncpg's record, a tuple with names
Names = Mapping[int, tuple[str, str]]

ID, RELATION, KEY, OLD_ROW, NEW_ROW, WIDTH = 0, 3, 5, 7, 8, 10
ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,]+)')
ESCAPED = re.compile(r"\\(.)")

# asyncpg returns PostgreSQL's "char" as bytes.
OPERATIONS = {
    b"i": Operation.INSERT,
    b"u": Operation.UPDATE,
    b"d": Operation.DELETE,
    b"t": Operation.TRUNCATE,
}

# Created once: json.loads with options would create a decoder for each call.
_decode_keys = json.JSONDecoder(parse_float=str).decode
_decode_rows = json.JSONDecoder(parse_float=Decimal).decode
_decode_key = json.JSONDecoder(parse_float=str, parse_int=short_integer).decode

_new = object.__new__


def _setter(name: str) -> Any:
    return getattr(Change, name).__set__


_set_operation, _set_schema, _set_table = map(_setter, ("operation", "schema", "table"))
_set_key, _set_changed, _set_position = map(_setter, ("key", "changed", "position"))
_set_transaction, _set_captured = map(_setter, ("transaction_id", "captured_at"))
_set_row, _set_trace = map(_setter, ("row", "trace"))


def _document(texts: Sequence[str | None]) -> str:
    """Join JSON texts into one document: decoding it costs a quarter of decoding each text."""
    return f"[{','.join([text or 'null' for text in texts])}]"


def decode_values(texts: Sequence[str | None]) -> Sequence[Values | None] | None:
    """Decode row values without loss of digits; None if no row has any.

    A row with a value that Python refuses gets none, as if the log had none.
    """
    if not any(texts):
        return None
    try:
        values: Sequence[Values | None] = _decode_rows(_document(texts))
    except (ValueError, RecursionError):
        return list(map(decode_mapping, texts))
    return values


def _decode_all_keys(texts: Sequence[str | None]) -> Sequence[Values | None]:
    try:
        keys: Sequence[Values | None] = _decode_keys(_document(texts))
    except (ValueError, RecursionError):
        return [None if text is None else _decode_key(text) for text in texts]
    return keys


# Few sets of columns occur, in millions of changes.
@lru_cache(maxsize=4096)
def decode_columns(text: str | None) -> tuple[str, ...] | None:
    r"""Decode the text of a one-dimensional array of names (PostgreSQL manual, 8.15.6).

    >>> decode_columns('{id,"a b","say \\"hi\\""}')
    ('id', 'a b', 'say "hi"')
    """
    if text is None:
        return None
    return tuple(
        ESCAPED.sub(r"\1", quoted) if quoted else plain
        for quoted, plain in ELEMENT.findall(text[1:-1])
    )


def decode_changes(
    records: Sequence[Record], names: Names, parts: Container[int], prefix: str, last: str
) -> list[Change]:
    """Return the changes of records of `log_changes`.

    `names` has the (schema, table) of every relation in `records`, `parts` those relations that
    are partitions: one that was truncated leaves rows in its table. Positions are `prefix` and the
    id, but the final change has `last`, which says as well that nothing is left before it.
    """
    keys = _decode_all_keys([record[KEY] for record in records])
    rows = decode_values([record[NEW_ROW] for record in records]) or repeat(None)
    changes = []
    for record, key, row in zip(records, keys, rows, strict=False):
        id_, xid, captured, relation, operation, _, changed, _, _, trace = record
        schema, table = names[relation]
        change = _new(Change)
        if operation == b"t" and relation in parts:
            operation = b"u"  # of any rows
        _set_operation(change, OPERATIONS[operation])
        _set_schema(change, schema)
        _set_table(change, table)
        _set_key(change, key)
        _set_changed(change, decode_columns(changed))
        _set_position(change, f"{prefix}{id_}")
        _set_transaction(change, xid)
        # The statement sends seconds: a timestamp takes longer to decode.
        _set_captured(change, datetime.fromtimestamp(captured, UTC))
        _set_row(change, row)
        _set_trace(change, trace)
        changes.append(change)
    if changes:
        _set_position(changes[-1], last)
    return changes
