"""The JSON form of Python values: what leaves a process, so that no reader rounds or misses it."""

import dataclasses
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import singledispatch
from typing import Any

JSON_SAFE_INTEGER = 2**53 - 1
MAX_PLACES = 200_000  # more than a numeric can have: 1e9999999 in a document stays short
AS_THEY_ARE = frozenset({str, bool, type(None)})


def json_form(value: Any) -> Any:
    """Return what stands for a value in JSON; `TypeError` for an object that has no form.

    Numbers that JavaScript would round are strings (RFC 8259, 6), as are times (ISO 8601), bytes
    (hexadecimal, as PostgreSQL writes them) and what else has a text of its own. An enum's member
    is its value; dataclasses and pydantic models are objects.

    >>> json_form({"price": Decimal("9.90"), "id": 2**53, "after": timedelta(hours=36)})
    {'price': '9.90', 'id': '9007199254740992', 'after': 'P1DT12H'}
    """
    kind = type(value)
    if kind in AS_THEY_ARE or (kind is int and abs(value) <= JSON_SAFE_INTEGER):
        return value
    return form_of(value)


@singledispatch
def form_of(value: Any) -> Any:
    """Return the form of a value by its type, or one of its base types."""
    if hasattr(value, "model_dump"):
        return json_form(value.model_dump(mode="json", by_alias=True))
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: json_form(getattr(value, name)) for name in names}
    text = str(value)
    if text == object.__repr__(value):
        raise TypeError(f"a {type(value).__name__} has no JSON form: give the class a __str__.")
    return text


@form_of.register
def _(value: Enum) -> Any:
    return json_form(value.value)


@form_of.register
def _(value: str) -> str:
    return value.value if isinstance(value, Enum) else str(value)


@form_of.register
def _(value: int) -> int | str:
    return int(value) if abs(value) <= JSON_SAFE_INTEGER else str(int(value))


@form_of.register
def _(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


@form_of.register
def _(value: Decimal) -> str:
    return format(value, "f") if abs(value.adjusted()) < MAX_PLACES else str(value)


@form_of.register(date)
@form_of.register(time)
def _(value: date | time) -> str:
    return value.isoformat()


@form_of.register
def _(value: timedelta) -> str:
    """Return an ISO 8601 duration of days and smaller units: a year has no fixed length."""
    sign, rest = ("-", -value) if value < timedelta(0) else ("", value)
    minutes, seconds = divmod(rest.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    fraction = f".{rest.microseconds:06d}".rstrip("0") if rest.microseconds else ""
    clock = "".join(f"{number}{unit}" for number, unit in ((hours, "H"), (minutes, "M")) if number)
    clock += f"{seconds}{fraction}S" if seconds or fraction else ""
    days = f"{rest.days}D" if rest.days else ""
    return f"{sign}P{days}{'T' if clock else ''}{clock}" if days or clock else "PT0S"


@form_of.register(bytes)
@form_of.register(bytearray)
@form_of.register(memoryview)
def _(value: bytes) -> str:
    return rf"\x{bytes(value).hex()}"


@form_of.register(Mapping)
def _(value: Mapping[Any, Any]) -> dict[Any, Any]:
    return {_name(name): json_form(item) for name, item in value.items()}


@form_of.register(list)
@form_of.register(tuple)
@form_of.register(set)
@form_of.register(frozenset)
def _(value: list[Any]) -> list[Any]:
    return [json_form(item) for item in value]


def _name(value: Any) -> str:
    form = json_form(value)
    return form if isinstance(form, str) else str(form)
