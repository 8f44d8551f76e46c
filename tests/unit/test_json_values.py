"""Every JSON text that PostgreSQL can store becomes a value, and the same one each time."""

from decimal import Decimal

import pytest

from rowsignal.postgres.json_values import (
    MAX_DEPTH,
    decode_documents,
    decode_mapping,
    decode_rows,
    decode_value,
    key_value,
)

LONG = "9" * 5000
DEEP = "[" * 5000 + "]" * 5000


def test_numbers_of_any_length_lose_no_digit():
    assert decode_value(LONG) == Decimal(LONG)
    assert decode_value(f'{{"n":-{LONG}}}') == {"n": Decimal(f"-{LONG}")}
    assert decode_value("1.50") == Decimal("1.50")
    assert str(decode_value("1.50")) == "1.50"


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_what_is_nested_too_deep_stays_text(opening):
    closing = "]" if opening == "[" else "}"
    inside = opening * MAX_DEPTH + "1" + closing * MAX_DEPTH
    beyond = opening + inside + closing
    assert not isinstance(decode_value(inside), str)
    assert decode_value(beyond) == beyond
    assert decode_value(DEEP) == DEEP


def test_brackets_in_strings_are_no_nesting():
    text = '"' + "[" * 500 + r"\"]" + '"'
    assert decode_value(text) == "[" * 500 + '"]'


def test_one_value_that_needs_care_does_not_change_its_neighbours():
    texts = ["1", LONG, '"\\ud800"', None, DEEP, "[1, 2.5]"]
    values = decode_documents(texts)
    assert values == [1, Decimal(LONG), "\ud800", None, DEEP, [1, Decimal("2.5")]]
    assert decode_rows(["a", "b"], [["1", LONG], [DEEP, "2"]]) == [
        {"a": 1, "b": Decimal(LONG)},
        {"a": DEEP, "b": 2},
    ]
    assert decode_rows([], [[], []]) == [{}, {}]


def test_many_shallow_documents_are_not_taken_for_a_deep_one():
    assert decode_documents(["[1]"] * 1000) == [[1]] * 1000


def test_a_row_of_the_log_with_such_a_value_counts_as_not_logged():
    assert decode_mapping(f'{{"id":1,"deep":{DEEP}}}') is None
    assert decode_mapping(f'{{"id":{LONG}}}') is None
    assert decode_mapping('{"id":1}') == {"id": 1}
    assert decode_mapping(None) is None


def test_keys_are_integers_or_text():
    texts = ["1", "1.00", "true", '"a"', '{"a": 1}', "null", "1e+300", LONG]
    assert [key_value(text) for text in texts] == [
        *(1, "1.00", True, "a", '{"a": 1}', "null", "1e+300", LONG),
    ]
