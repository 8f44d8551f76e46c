"""Reading the WAL on from any position gives what comes after it, once."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowsignal.change_log.positions import Snapshot
from rowsignal.exceptions import PositionError
from rowsignal.relay.positions import WalPosition, incarnation_of, is_of_wal, passes
from rowsignal.relay.wal.changes import ChangeReader, Family, whole_xid
from rowsignal.relay.wal.pgoutput import (
    UNCHANGED,
    Begin,
    Column,
    Commit,
    Delete,
    Insert,
    Message,
    Relation,
    Truncate,
    Update,
)
from rowsignal.relay.wal.texts import TextReaders
from rowsignal.streams.loader import RowChange

INTEGER, TEXT = 23, 25
COLUMNS = (Column("id", INTEGER, -1, True), Column("v", TEXT, -1, False))
RELATION = Relation(1, "public", "item", "f", COLUMNS)
OTHER = Relation(2, "public", "other", "d", COLUMNS)
FAMILY = Family(("public", "item"), 1, frozenset({1}), ("id",))
SYSTEM = 7612345678901234567
START = WalPosition(SYSTEM, 1, 0)

KEYS = st.sampled_from(["1", "2", "3"])
ROWS = st.tuples(KEYS, st.sampled_from(["a", "b"])).map(list)
CHANGES = st.one_of(
    st.builds(Insert, st.sampled_from([1, 2]), ROWS),
    st.builds(Update, st.just(1), ROWS, st.just(True), ROWS),
    st.builds(Update, st.just(1), st.none(), st.just(False), ROWS),
    st.builds(Delete, st.just(1), ROWS, st.just(True)),
    st.builds(Truncate, st.sampled_from([(1,), (2,), (1, 2), (2, 1)]), st.just(0)),
)
TRANSACTIONS = st.lists(st.lists(CHANGES, max_size=5), max_size=5)


def _messages(transactions: Sequence[Sequence[Message]]) -> list[Message]:
    found: list[Message] = [RELATION, OTHER]
    for number, changes in enumerate(transactions, 1):
        lsn = 100 * number
        found += [Begin(lsn, number, 700 + number), *changes, Commit(lsn, lsn + 40, number)]
    return found


def _read(messages: Sequence[Message], start: WalPosition) -> list[Any]:
    reader = ChangeReader(start, 700)
    reader.learn({1: FAMILY}, TextReaders(()))
    return [item for message in messages for item in reader.read(message)]


def _position(item: Any) -> str:
    return str(item.change.position if isinstance(item, RowChange) else item.position)


@given(TRANSACTIONS)
def test_reading_goes_on_after_any_change(transactions: list[list[Message]]) -> None:
    whole = _read(_messages(transactions), START)
    places = [WalPosition.parse(_position(item)) for item in whole]
    assert len(set(places)) == len(places)
    assert places == sorted(places, key=lambda it: (it.lsn, it.number))
    for number, place in enumerate(places, 1):
        assert _read(_messages(transactions), place) == whole[number:]


@given(TRANSACTIONS, st.integers(0, 700))
def test_reading_goes_on_after_any_checkpoint(transactions: list[list[Message]], lsn: int) -> None:
    whole = _read(_messages(transactions), START)
    rest = [it for it in whole if WalPosition.parse(_position(it)).lsn >= lsn]
    assert _read(_messages(transactions), WalPosition(SYSTEM, 1, lsn)) == rest


@given(TRANSACTIONS)
def test_the_position_never_goes_back(transactions: list[list[Message]]) -> None:
    reader = ChangeReader(WalPosition(SYSTEM, 1, 250, 3), 700)
    reader.learn({1: FAMILY}, TextReaders(()))
    before = reader.position
    for message in _messages(transactions):
        reader.read(message)
        assert (reader.position.lsn, reader.position.number) >= (before.lsn, before.number)
        before = reader.position


def test_a_keepalive_amid_a_transaction_says_nothing() -> None:
    reader = ChangeReader(START, 700)
    reader.read(Begin(100, 1, 701))
    reader.reached(5000)
    assert reader.position.lsn == 100
    reader.read(Commit(100, 140, 1))
    reader.reached(5000)
    assert reader.position.lsn == 5000


def test_what_was_not_touched_comes_from_the_old_row() -> None:
    update = Update(1, ["1", "long"], True, ["1", UNCHANGED])
    other = Update(1, None, False, ["1", UNCHANGED])
    messages = [RELATION, Begin(100, 1, 701), update, other]
    (found,) = _read(messages, START)  # the first has changed nothing
    assert found.row == {"id": 1}
    assert found.change.changed is None


@given(st.integers(2**31, 2**62), st.integers(-(2**31) + 1, 2**31 - 1))
def test_the_upper_half_of_a_transactions_id_is_found(near: int, distance: int) -> None:
    xid = near + distance
    assert whole_xid(xid % 2**32, near) == xid


@pytest.mark.parametrize(
    "text",
    ["", "w1", "w0.1.A.0", "w1.1.a.0", "w1.1.A.01", "w1.1.A.0\n", "w1.1.\u0661.0", "ARI0Vng"],
)
def test_other_texts_are_no_positions(text: str) -> None:
    assert not is_of_wal(text)
    with pytest.raises(PositionError):
        WalPosition.parse(text)


@given(
    st.integers(1, 2**63), st.integers(1, 2**31), st.integers(0, 2**64 - 1), st.integers(0, 10**9)
)
def test_a_position_is_read_as_it_was_written(
    system: int, timeline: int, lsn: int, number: int
) -> None:
    position = WalPosition(system, timeline, lsn, number)
    assert WalPosition.parse(str(position)) == position
    assert incarnation_of(str(position)) == str(system)
    assert passes(str(position), Snapshot(5), lsn)
    assert not passes(str(position), Snapshot(5), lsn + 1)
    assert not passes(str(position), Snapshot(5), None)
