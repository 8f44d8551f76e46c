"""Every Python value that a row may hold has one form in JSON."""

import dataclasses
import enum
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from ipaddress import ip_address
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from rowsignal.json_forms import json_form

SAFE = 2**53 - 1


class Status(enum.Enum):
    NEW = "new"


class Level(enum.IntEnum):
    HIGH = 3


class Color(str, enum.Enum):  # noqa: UP042 -- as models of older programs have them
    RED = "red"


@dataclasses.dataclass
class Money:
    amount: Decimal
    until: date | None = None


class Price(BaseModel):
    amount: Decimal = Field(serialization_alias="sum")


class Labelled:
    def __repr__(self) -> str:
        return "Labelled()"

    def __str__(self) -> str:
        return "a label"


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (None, None),
        (True, True),
        (SAFE, SAFE),
        (-SAFE - 1, str(-SAFE - 1)),
        (0.1, 0.1),
        (float("nan"), "NaN"),
        (float("-inf"), "-Infinity"),
        (Decimal("1.10"), "1.10"),
        (Decimal("1E+3"), "1000"),
        (Decimal("1E+999999"), "1E+999999"),
        (Decimal("NaN"), "NaN"),
        (Status.NEW, "new"),
        (Level.HIGH, 3),
        (Color.RED, "red"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, tzinfo=UTC), "2026-01-02T03:00:00+00:00"),
        (time(1, 2), "01:02:00"),
        (timedelta(0), "PT0S"),
        (timedelta(days=400, hours=2, seconds=3, microseconds=500_000), "P400DT2H3.5S"),
        (timedelta(minutes=-90), "-PT1H30M"),
        (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
        (ip_address("::1"), "::1"),
        (b"\x00\xff", r"\x00ff"),
        (bytearray(b"a"), r"\x61"),
        ((1, [2**60]), [1, [str(2**60)]]),
        ({"a": {1: Status.NEW}}, {"a": {"1": "new"}}),
        (frozenset({Decimal(7)}), ["7"]),
        (Money(Decimal("1.50"), date(2026, 1, 2)), {"amount": "1.50", "until": "2026-01-02"}),
        (Price(amount=Decimal("1.50")), {"sum": "1.50"}),
        (Labelled(), "a label"),
    ],
    ids=repr,
)
def test_a_value_has_its_form(value: Any, form: Any) -> None:
    found = json_form(value)
    assert found == form
    assert type(found) is type(form)
    json.dumps(found, allow_nan=False)


def test_an_object_without_a_text_of_its_own_has_none() -> None:
    with pytest.raises(TypeError, match="object has no JSON form: give the class a __str__"):
        json_form([object()])


@given(st.timedeltas())
def test_a_duration_is_one_that_pydantic_reads(value: timedelta) -> None:
    assert TypeAdapter(timedelta).validate_python(json_form(value)) == value
