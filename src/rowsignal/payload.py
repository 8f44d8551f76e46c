"""The payload of a NOTIFY, as a trigger sends it and a listener reads it.

A payload is one JSON object, under 8000 bytes (PostgreSQL manual, NOTIFY):

    {"t": "public.orders@16387", "s": "public", "n": "orders", "o": "update",
     "x": "771", "k": [42], "c": ["status"]}

`t` is the token that the installer gave the table; renames keep it, and partitions share the token
of their root. `s` and `n` name the table that was written, `o` is the operation, `x` the
transaction, `k` the primary-key values in key order, `c` the columns that an update changed. A
payload without `k` concerns any rows of the table, one without `c` any columns.
"""

import json
from dataclasses import dataclass
from typing import Any, Self

from rowsignal.changes import Operation

CHANNEL = "rowsignal"
LOG_CHANNEL = "rowsignal_log"
MAX_BYTES = 7999

# Session-level advisory locks are (LOCK_CLASS, bucket), held shared by listeners that need hints.
LOCK_CLASS = 1919907699  # "rows" in ASCII
BUCKETS = 128
LOG_BUCKET = 1000  # held shared by readers of the change log that wait for notifications

# `json.loads` with these options would make a decoder for each of 100,000 keys.
_DECODER = json.JSONDecoder(parse_float=str, parse_constant=str)

KeyValue = int | str | bool
Key = tuple[KeyValue, ...]


class PayloadError(ValueError):
    """A payload is malformed, forged, or from a newer version."""


def parse_key(values: object) -> Key:
    """Return a key from its decoded JSON array; raise `PayloadError` for anything else."""
    if not isinstance(values, list) or not values:
        raise PayloadError("a key is a JSON array with a value for each key column")
    if not all(isinstance(value, int | str) for value in values):
        raise PayloadError("a key holds numbers, strings and booleans only")
    return tuple(values)


def decode_json(text: str) -> Any:
    """Decode JSON with other numbers than integers as text: 1.00 and 1.0 are two keys."""
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise PayloadError(f"not JSON: {error}") from error


@dataclass(frozen=True, slots=True)
class Hint:
    """One decoded notification: rows of a table may have changed."""

    token: str
    schema: str
    table: str
    operation: Operation
    transaction_id: int | None = None
    key: Key | None = None
    changed: tuple[str, ...] | None = None

    @classmethod
    def decode(cls, payload: str) -> Self:
        """Decode a payload; raise `PayloadError` if no trigger would have sent it."""
        fields = decode_json(payload)
        if not isinstance(fields, dict):
            raise PayloadError("not a JSON object")
        return cls(
            token=_text(fields, "t"),
            schema=_text(fields, "s"),
            table=_text(fields, "n"),
            operation=_operation(fields),
            transaction_id=_transaction(fields),
            key=parse_key(fields["k"]) if "k" in fields else None,
            changed=_columns(fields),
        )

    def encode(self) -> str:
        """Return the payload, as the trigger would send it."""
        fields: dict[str, object] = {"t": self.token, "s": self.schema, "n": self.table}
        fields["o"] = str(self.operation)
        if self.transaction_id is not None:
            fields["x"] = str(self.transaction_id)
        if self.key is not None:
            fields["k"] = list(self.key)
        if self.changed is not None:
            fields["c"] = list(self.changed)
        return json.dumps(fields, separators=(",", ":"), ensure_ascii=False)


def _text(fields: dict[str, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise PayloadError(f'"{name}" is missing or not a string')
    return value


def _operation(fields: dict[str, Any]) -> Operation:
    try:
        return Operation(_text(fields, "o"))
    except ValueError as error:
        raise PayloadError(str(error)) from error


def _transaction(fields: dict[str, Any]) -> int | None:
    text = fields.get("x")
    if text is None:
        return None
    if not isinstance(text, str) or not text.isascii() or not text.isdigit() or len(text) > 20:
        raise PayloadError('"x" is not a transaction id')
    return int(text)


def _columns(fields: dict[str, Any]) -> tuple[str, ...] | None:
    names = fields.get("c")
    if names is None:
        return None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise PayloadError('"c" is not a list of column names')
    return tuple(names)
