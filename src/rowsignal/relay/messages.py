"""The messages of the stream: changes, resets and checkpoints, as JSON with headers.

Numbers are written as PostgreSQL wrote them, no digit lost.
"""

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from rowsignal.changes import Change, Operation, Reset
from rowsignal.identifiers import QualifiedName
from rowsignal.nats.subjects import subject_of
from rowsignal.postgres.json_values import decode_mapping
from rowsignal.relay.positions import incarnation_of
from rowsignal.streams.loader import RowChange, TableReset

POSITION = "Rowsignal-Position"
TRANSACTION = "Rowsignal-Transaction"
TRACE = "Rowsignal-Trace"
INCARNATION = "Rowsignal-Incarnation"
SCHEMA = "Rowsignal-Schema"
ID = "Nats-Msg-Id"
MAX_HEADER_BYTES = 8192

UNREADABLE = "A change cannot be read from NATS: it is not as this version writes them."
TOO_LARGE = "A change of {} has more bytes than a message may have: read its row again."
UNPLACED = "A change of {} has no place of its own in the log: read its rows again."

# Not to be guessed: a text value that looked like a number's place would become that number.
MARK = f"{secrets.token_hex(16)}:"
MARKED = re.compile(f'"{MARK}([^"]*)"')


@dataclass(slots=True)
class Message:
    """One message; `id` is its place: of two with the same, the same changes lie before."""

    id: str
    subject: str
    payload: bytes
    headers: dict[str, str]
    captured_at: datetime | None = None

    @property
    def size(self) -> int:
        """The upper bound of the size in bytes: positions, and with them headers, are bounded."""
        return len(self.payload) + MAX_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A message that only says how far the relay has come."""


Item = RowChange | Reset | Checkpoint


class MessageWriter:
    """Writes what becomes of the changes of one database."""

    def __init__(self, database: str) -> None:
        self.database = database
        self._subjects: dict[QualifiedName, str] = {}

    def change(self, it: RowChange, position: str, columns: tuple[str, ...]) -> Message:
        """Return the message of a change that carries some columns.

        Raises `ValueError` or `RecursionError` for values that cannot be written as JSON.
        """
        change, row = it.change, _carried(it.row, columns)
        body = {
            "operation": change.operation,
            "schema": change.schema,
            "table": change.table,
            "key": change.key,
            "changed": change.changed and [name for name in change.changed if name in columns],
            "captured_at": change.captured_at and change.captured_at.isoformat(),
            "row": row,
            "old": _carried(it.old, columns),
        }
        if row is not None and len(row) < len(columns):
            # Large values that were not touched: the WAL lacks them.
            body["absent"] = [name for name in columns if name not in row]
        headers = self._headers(position, position)
        headers[SCHEMA] = schema_version(columns)
        if change.transaction_id is not None:
            headers[TRANSACTION] = str(change.transaction_id)
        if change.trace is not None:  # printable ASCII, so it cannot make up another header
            headers[TRACE] = change.trace
        subject = self._subjects.get(it.table)
        if subject is None:
            subject = self._subjects[it.table] = subject_of(self.database, it.table)
        return Message(position, subject, encode(body), headers, change.captured_at)

    def reset(self, reset: Reset, position: str, after: int) -> Message:
        """Return the message of a gap, for the place after a sequence of the stream."""
        table = reset.table if isinstance(reset, TableReset) else None
        body: dict[str, Any] = {"operation": "reset", "reason": reset.reason}
        if isinstance(reset, TableReset):
            body |= {"schema": reset.table[0], "table": reset.table[1]}
            body["is_of_capture"] = reset.is_of_capture
        place = f"reset:{after}:{position}"
        subject = subject_of(self.database, table)
        return Message(place, subject, encode(body), self._headers(place, position))

    def checkpoint(self, position: str, after: int) -> Message:
        """Return the message that says how far the relay has come while nothing happened."""
        place = f"checkpoint:{after}:{position}"
        body = encode({"operation": "checkpoint"})
        subject = subject_of(self.database)
        return Message(place, subject, body, self._headers(place, position))

    def _headers(self, place: str, position: str) -> dict[str, str]:
        return {ID: place, POSITION: position, INCARNATION: incarnation_of(position)}


def _carried(
    values: Mapping[str, Any] | None, columns: tuple[str, ...]
) -> Mapping[str, Any] | None:
    if values is None or tuple(values) == columns:  # as most rows are
        return values
    return {name: value for name, value in values.items() if name in columns}


@lru_cache(maxsize=1024)
def schema_version(columns: tuple[str, ...]) -> str:
    """Return what stands for the columns that a table's messages carry.

    >>> schema_version(("id", "status")) == schema_version(("id", "total"))
    False
    """
    return hashlib.sha256(repr(columns).encode()).hexdigest()[:12]


def _marked(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{MARK}{value}"
    raise TypeError(f"{value!r} is not a value of JSON.")


# Bodies are trees, and looking for circles takes a tenth of the time.
_encode = json.JSONEncoder(separators=(",", ":"), default=_marked, check_circular=False).encode


def encode(body: Mapping[str, Any]) -> bytes:
    """Return a body as JSON in ASCII.

    >>> encode({"price": Decimal("9.90")})
    b'{"price":9.90}'
    """
    text = _encode(body)
    if MARK in text:
        text = MARKED.sub(r"\1", text)
    return text.encode("ascii")


def decode(payload: bytes, headers: Mapping[str, str], position: str) -> Item:
    """Return what a message says, under the position that readers resume after."""
    body = decode_mapping(payload.decode("utf-8", "replace"))
    if body is None:
        return Reset(reason=UNREADABLE, position=position)
    try:
        return _item(body, headers, position)
    except (KeyError, TypeError, ValueError):
        return Reset(reason=UNREADABLE, position=position)


def _item(body: Mapping[str, Any], headers: Mapping[str, str], position: str) -> Item:
    operation = body["operation"]
    if operation == "checkpoint":
        return Checkpoint()
    if operation == "reset":
        return _reset(body, position)
    changed, captured = body["changed"], body["captured_at"]
    transaction = headers.get(TRANSACTION)
    change = Change(
        operation=Operation(operation),
        schema=body["schema"],
        table=body["table"],
        key=body["key"],
        changed=None if changed is None else tuple(changed),
        position=position,
        transaction_id=None if transaction is None else int(transaction),
        captured_at=captured and datetime.fromisoformat(captured),
        row=body["row"],
        trace=headers.get(TRACE),
    )
    return RowChange(change, body["row"], body["old"])


def _reset(body: Mapping[str, Any], position: str) -> Reset:
    reason = str(body["reason"])
    if "table" not in body:
        return Reset(reason=reason, position=position)
    return TableReset(
        reason=reason,
        position=position,
        table=(body["schema"], body["table"]),
        is_of_capture=bool(body["is_of_capture"]),
    )
