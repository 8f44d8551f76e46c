"""Decoder of PostgreSQL's JSON to Python values, for every text that PostgreSQL can store.

Values that Python's decoder refuses have a defined form: a number with too many digits is a
`Decimal`, a document nested too deep stays text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

Values = Mapping[str, Any]

MAX_DEPTH = 200  # Python's own limit depends on the version, and on the stack of the caller
MAX_DIGITS = 600  # Python's own limit can be set as low as 640
STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)

# Made once: json.loads makes another for each call that wants its numbers otherwise.
_decode = json.JSONDecoder(parse_float=Decimal).decode


def _integer(digits: str) -> int | Decimal:
    return int(digits) if len(digits) <= MAX_DIGITS else Decimal(digits)


_decode_any = json.JSONDecoder(parse_float=Decimal, parse_int=_integer).decode


def short_integer(digits: str) -> int | str:
    """Return a key's integer, or its text if it has too many digits for Python."""
    return int(digits) if len(digits) <= MAX_DIGITS else digits


_decode_key = json.JSONDecoder(parse_float=str, parse_int=short_integer).decode


def decode_value(text: str | None) -> Any:
    """Decode one value without loss of digits; one nested deeper than 200 levels stays text."""
    if text is None:
        return None
    return text if _is_deep(text) else _decode_any(text)


def decode_documents(texts: Sequence[str | None]) -> list[Any]:
    """Decode values as `decode_value` does, all at once unless one is special."""
    document = f"[{','.join([text or 'null' for text in texts])}]"
    # Counting brackets is cheap, and nearly always enough.
    if _openings(document) > MAX_DEPTH and any(_is_deep(text) for text in texts if text):
        return list(map(decode_value, texts))
    try:
        values: list[Any] = _decode(document)
    except (ValueError, RecursionError):
        return list(map(decode_value, texts))
    return values


def decode_mapping(text: str | None) -> Values | None:
    """Decode an object of values; None if one of them is special, or there are none."""
    if text is None or _is_deep(text):
        return None
    try:
        values: Values = _decode(text)
    except (ValueError, RecursionError):
        return None
    return values


def decode_rows(names: Sequence[str], rows: Sequence[Sequence[str | None]]) -> list[Values]:
    """Decode rows whose values come as one JSON text each."""
    values, width = decode_documents([text for row in rows for text in row]), len(names)
    ends = [(place * width, place * width + width) for place in range(len(rows))]
    return [dict(zip(names, values[start:end], strict=True)) for start, end in ends]


def key_value(text: str | None) -> Any:
    """Decode a key column's value in the form of changes: integers, else text."""
    if text is None:
        return None
    if text.isdecimal() and len(text) <= MAX_DIGITS:  # nearly every key
        return int(text)
    if text[:1] in {"{", "["} or text == "null":
        return text
    return _decode_key(text)


def _openings(text: str) -> int:
    return text.count("[") + text.count("{")


def _is_deep(text: str) -> bool:
    return _openings(text) > MAX_DEPTH and _depth(text) > MAX_DEPTH


def _depth(text: str) -> int:
    depth = deepest = 0
    # Brackets inside strings do not nest.
    for character in STRING.sub("", text):
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
