"""Row keys for readers: a digest replaces the key columns that a reader may not see."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rowsignal.json_forms import json_form

KeyWriter = Callable[[Mapping[str, Any]], Any]

# Name of the hidden part of a key. No column of PostgreSQL can have the empty name.
HIDDEN = ""
PROCESS_SECRET = secrets.token_bytes(32)
DIGEST_LENGTH = 32


def key_writer(
    table: str, columns: Iterable[str], shown: frozenset[str], secret: bytes
) -> KeyWriter:
    """Return the function that makes a reader's key from a row's key.

    Readers identify rows by the key, so hidden key columns cannot be left out. The digest that
    replaces them is always the same for a row; without the secret its values cannot be guessed.
    """
    names = tuple(columns)
    if shown.issuperset(names):
        return lambda key: {name: json_form(value) for name, value in key.items()}

    def write(key: Mapping[str, Any]) -> dict[str, Any]:
        visible = {name: json_form(key[name]) for name in names if name in shown}
        return {**visible, HIDDEN: _digest(secret, table, [key[name] for name in names])}

    return write


def _digest(secret: bytes, table: str, values: list[Any]) -> str:
    text = json.dumps([table, *values], separators=(",", ":"), default=str)
    return hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()[:DIGEST_LENGTH]
