"""Dead letters: conversion of changes to JSON and back, without loss of digits."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

from rowsignal.changes import Change, Operation

_decode = json.JSONDecoder(parse_float=Decimal).decode


def change_to_json(change: Change) -> str:
    """Return a complete change as JSON.

    >>> change_to_json(Change(operation=Operation.DELETE, schema="public", table="t"))
    '{"operation": "delete", "schema": "public", "table": "t"}'
    """
    fields = {
        "operation": str(change.operation),
        "schema": change.schema,
        "table": change.table,
        "key": None if change.key is None else dict(change.key),
        "changed": None if change.changed is None else list(change.changed),
        "position": change.position,
        "transaction_id": change.transaction_id,
        "captured_at": change.captured_at and change.captured_at.isoformat(),
        "row": None if change.row is None else dict(change.row),
        "trace": change.trace,
    }
    return write({name: value for name, value in fields.items() if value is not None})


def write(value: Any) -> str:
    """Return a value as JSON, with decimals as numbers, which json.dumps cannot write.

    >>> write({"price": Decimal("1.10"), "tags": [None, "a"]})
    '{"price": 1.10, "tags": [null, "a"]}'
    """
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        items = (f"{json.dumps(name)}: {write(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(write, value)) + "]"
    return json.dumps(value)


def change_from_json(text: str) -> Change:
    """Return the change that `change_to_json` has written."""
    fields: dict[str, Any] = _decode(text)
    captured, changed = fields.get("captured_at"), fields.get("changed")
    return Change(
        operation=Operation(fields["operation"]),
        schema=fields["schema"],
        table=fields["table"],
        key=fields.get("key"),
        changed=None if changed is None else tuple(changed),
        position=fields.get("position"),
        transaction_id=fields.get("transaction_id"),
        captured_at=captured and datetime.fromisoformat(captured),
        row=fields.get("row"),
        trace=fields.get("trace"),
    )
