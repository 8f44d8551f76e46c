"""Row keys as readers get them: a key column that a reader may not see does not leave."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rowsignal.json_forms import json_form

KeyWriter = Callable[[Mapping[str, Any]], Any]

# Stands for the hidden part of a key. No column of PostgreSQL can have the empty name.
HIDDEN = ""
PROCESS_SECRET = secrets.token_bytes(32)
DIGEST_LENGTH = 32


def key_writer(
    table: str, columns: Iterable[str], shown: frozenset[str], secret: bytes
) -> KeyWriter:
    """Return what makes the key that leaves of a row's key.

    Readers tell rows apart by the key, so hidden key columns cannot simply be left out: they are
    replaced by a digest that is the same for the same row of the table and, without the secret,
    cannot be traced back to values by trying them.
    """
    names = tuple(columns)
    if shown.issuperset(names):
        return lambda key: json_form(dict(key))

    def write(key: Mapping[str, Any]) -> dict[str, Any]:
        visible = {name: json_form(key[name]) for name in names if name in shown}
        return {**visible, HIDDEN: _digest(secret, table, [key[name] for name in names])}

    return write


def _digest(secret: bytes, table: str, values: list[Any]) -> str:
    text = json.dumps([table, *values], separators=(",", ":"), default=str)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:DIGEST_LENGTH]
