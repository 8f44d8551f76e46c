"""Values that come as PostgreSQL's text, in the form that the change log gives them.

That is the form of `to_json`, for values of built-in types and of domains over them; a value of
another type is its text. The connection pins what texts depend on: `TEXT_SETTINGS`.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from rowsignal.postgres.json_rows import SETTINGS
from rowsignal.postgres.json_values import MAX_DIGITS, decode_value, key_value

TEXT_SETTINGS = SETTINGS | {"client_encoding": "UTF8"}

BOOLEAN = 16
INTEGERS = frozenset({20, 21, 23})
NUMBERS = frozenset({700, 701, 1700})
DOCUMENTS = frozenset({114, 3802})
TIMESTAMPS = frozenset({1114, 1184})
INTEGER_VECTOR, OID_VECTOR = 22, 30

INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
NOT_FINITE = frozenset({"NaN", "Infinity", "-Infinity"})
BOUNDS = re.compile(r"(\[-?\d+:-?\d+\])+=", re.ASCII)
UTC_OFFSET = re.compile(r"\+00(?= BC$|$)", re.ASCII)
ESCAPED = re.compile(r"\\(.)", re.DOTALL)

Read = Callable[[str], Any]


@dataclass(frozen=True, slots=True)
class TypeFacts:
    """An array type (what its elements are, and what separates them), or a domain over `base`."""

    oid: int
    element: int
    delimiter: str
    base: int


class TextReaders:
    """The functions that read the texts of a database's types."""

    def __init__(self, types: Iterable[TypeFacts]) -> None:
        self._types: Mapping[int, TypeFacts] = {it.oid: it for it in types}

    def value(self, type_: int) -> Read:
        """Return what reads a value of a type as the log has it in a row."""
        type_ = self._base(type_)
        facts = self._types.get(type_)
        if type_ in _READS:
            return _READS[type_]
        if facts is None:
            return str
        return _array_reader(self.value(facts.element), facts.delimiter)

    def key(self, type_: int) -> Read:
        """Return what reads a value of a type as the log has it in a key: integers, else text."""
        type_ = self._base(type_)
        if type_ in NUMBERS:
            return _key_number
        if type_ in DOCUMENTS:
            return key_value
        if type_ in (INTEGER_VECTOR, OID_VECTOR):
            return _document_reader(self.value(type_))
        facts = self._types.get(type_)
        if facts is not None:
            return _document_reader(_array_reader(self._element(facts.element), facts.delimiter))
        return self.value(type_)

    def _element(self, type_: int) -> Read:
        """Return what reads an element of a key's array, where documents stay as written."""
        return _Document if type_ in DOCUMENTS else self.value(type_)

    def _base(self, type_: int) -> int:
        facts = self._types.get(type_)
        return facts.base if facts is not None and facts.base else type_


def _boolean(text: str) -> bool:
    return text == "t"


def _number(text: str) -> int | Decimal | str:
    if text in NOT_FINITE:
        return text
    is_integer = INTEGER.fullmatch(text) and len(text) <= MAX_DIGITS
    return int(text) if is_integer else Decimal(text)


def _key_number(text: str) -> Any:
    return key_value(text) if INTEGER.fullmatch(text) else text


def _timestamp(text: str) -> str:
    return UTC_OFFSET.sub("+00:00", text.replace(" ", "T", 1))


def _integers(text: str) -> list[int]:
    return [int(part) for part in text.split()]


_READS: Mapping[int, Read] = {
    BOOLEAN: _boolean,
    **dict.fromkeys(INTEGERS, int),
    **dict.fromkeys(NUMBERS, _number),
    **dict.fromkeys(DOCUMENTS, decode_value),
    **dict.fromkeys(TIMESTAMPS, _timestamp),
    INTEGER_VECTOR: _integers,
    OID_VECTOR: str.split,
}


class _Document(str):
    """A JSON document that is not read."""

    __slots__ = ()


def _document_reader(read: Read) -> Read:
    return lambda text: _document(read(text))


def _document(value: Any) -> str:
    """Return a value as `to_json` writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(_document, value))}]"
    if isinstance(value, _Document | Decimal):
        return str(value)
    return json.dumps(value, ensure_ascii=False)


def _array_reader(read: Read, delimiter: str) -> Read:
    separator = re.escape(delimiter)
    token = re.compile(
        rf'[{{}}]|{separator}|"((?:[^"\\]|\\.)*)"|((?:[^"\\{{}}{separator}]|\\.)+)', re.DOTALL
    )

    def array(text: str) -> list[Any]:
        """Read an array's text (PostgreSQL manual, 8.15.6), whatever its bounds are."""
        found: list[Any] = []
        open_lists = [found]
        for match in token.finditer(BOUNDS.sub("", text, count=1) if text[:1] == "[" else text):
            quoted, plain = match.groups()
            if quoted is not None:
                open_lists[-1].append(read(ESCAPED.sub(r"\1", quoted)))
            elif plain is not None:
                open_lists[-1].append(None if plain == "NULL" else read(ESCAPED.sub(r"\1", plain)))
            elif match[0] == "{":
                inner: list[Any] = []
                open_lists[-1].append(inner)
                open_lists.append(inner)
            elif match[0] == "}":
                open_lists.pop()
        whole: list[Any] = found[0]
        return whole

    return array
