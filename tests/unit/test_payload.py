"""The text of notifications: ours comes back unchanged, others are refused."""

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.changes import Operation
from rowsignal.payload import Hint, PayloadError

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
keys = st.lists(st.integers() | texts | st.booleans(), min_size=1, max_size=3).map(tuple)
hints = st.builds(
    Hint,
    token=texts,
    schema=texts,
    table=texts,
    operation=st.sampled_from(Operation),
    transaction_id=st.none() | st.integers(0, 2**64 - 1),
    key=st.none() | keys,
    changed=st.none() | st.lists(texts, max_size=3).map(tuple),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner) | st.dictionaries(texts, inner),
    max_leaves=10,
)


@given(hints)
def test_what_is_encoded_is_decoded(hint: Hint) -> None:
    assert Hint.decode(hint.encode()) == hint


@given(st.text())
def test_any_text_is_a_hint_or_refused(text: str) -> None:
    with suppress(PayloadError):
        assert isinstance(Hint.decode(text), Hint)


@given(st.dictionaries(st.sampled_from("tsnoxkc"), json_values))
def test_any_object_is_a_hint_or_refused(fields: dict[str, object]) -> None:
    with suppress(PayloadError):
        assert isinstance(Hint.decode(json.dumps(fields)), Hint)


def test_keys_keep_the_text_of_their_numbers() -> None:
    fields = '{"t":"t","s":"s","n":"n","o":"update","k":[%s]}'
    assert Hint.decode(fields % "1.00").key == ("1.00",)
    assert Hint.decode(fields % "1.0").key == ("1.0",)
    assert Hint.decode(fields % "12345678901234567890").key == (12345678901234567890,)


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"t":"t","s":"s","n":"n","o":"drop"}',
        '{"t":"t","s":"s","n":"n","o":"update","k":[]}',
        '{"t":"t","s":"s","n":"n","o":"update","k":[null]}',
        '{"t":"t","s":"s","n":"n","o":"update","x":"one"}',
        '{"t":"t","s":"s","n":"n","o":"update","c":"status"}',
    ],
)
def test_what_no_trigger_sends_is_refused(payload: str) -> None:
    with pytest.raises(PayloadError):
        Hint.decode(payload)
