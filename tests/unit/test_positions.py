"""The text of a position: exact both ways, short, and safe to take from any client."""

from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rowsignal.change_log.positions import (
    MAX_LENGTH,
    MAX_XID,
    Position,
    Snapshot,
    StoredPosition,
    decode,
    window_prefix,
)
from rowsignal.exceptions import PositionError

LOG = UUID("6c0f64a5-6cd6-4a9c-9f2e-1d2f1a1d7e11")
ids = st.integers(0, 2**63 - 1)


@st.composite
def snapshots(draw: st.DrawFn, low: int = 1, high: int = MAX_XID) -> Snapshot:
    xmax = draw(st.integers(low, high))
    gaps = draw(st.lists(st.integers(1, 300), max_size=30))
    running, above = [], xmax
    for gap in gaps:
        above -= gap
        if above >= 1:
            running.append(above)
    return Snapshot(xmax, tuple(reversed(running)))


@st.composite
def windows(draw: st.DrawFn) -> tuple[Snapshot, Snapshot]:
    old = draw(snapshots(high=2**62))
    still = draw(st.lists(st.sampled_from(old.running), unique=True)) if old.running else []
    span = draw(st.integers(0, 500))
    fresh = draw(st.sets(st.integers(old.xmax, old.xmax + span - 1), max_size=20)) if span else ()
    return old, Snapshot(old.xmax + span, tuple(sorted([*still, *fresh])))


@given(snapshots())
def test_a_snapshot_survives_its_text(snapshot: Snapshot) -> None:
    assert Snapshot.parse(str(snapshot)) == snapshot


def test_a_snapshot_reads_what_postgresql_writes() -> None:
    assert Snapshot.parse("10:20:10,14,15") == Snapshot(20, (10, 14, 15))
    assert str(Snapshot(20, (10, 14, 15))) == "10:20:10,14,15"
    assert str(Snapshot(20)) == "20:20:"


@given(windows())
def test_a_later_snapshot_includes_an_older_one(window: tuple[Snapshot, Snapshot]) -> None:
    old, new = window
    assert new.includes(old)
    assert old.includes(new) == (old.xmax == new.xmax and old.running == new.running)


def test_a_snapshot_does_not_include_what_it_saw_running() -> None:
    assert Snapshot(30, (5,)).includes(Snapshot(20, (5, 7)))
    assert not Snapshot(30, (5,)).includes(Snapshot(20, (7,)))
    assert not Snapshot(10).includes(Snapshot(20, (7,)))
    assert Snapshot(10, (7,)).sees(9)
    assert not Snapshot(10, (7,)).sees(7)
    assert not Snapshot(10, (7,)).sees(10)


@given(st.uuids(), snapshots())
def test_a_position_survives_its_text(incarnation: UUID, seen: Snapshot) -> None:
    position = Position(incarnation, seen)
    assert decode(position.encode()) == position


@given(st.uuids(), windows(), ids)
def test_a_position_within_a_window_survives_its_text(
    incarnation: UUID, window: tuple[Snapshot, Snapshot], last_id: int
) -> None:
    position = Position(incarnation, *window, last_id)
    assert decode(position.encode()) == position
    assert position.encode() == f"{window_prefix(incarnation, *window)}{last_id}"


@given(st.uuids(), st.uuids(), st.none() | ids)
def test_a_stored_position_survives_its_text(log: UUID, key: UUID, last_id: int | None) -> None:
    position = StoredPosition(log, key, last_id)
    assert decode(position.encode()) == position


def test_twenty_running_transactions_fit_in_a_short_text() -> None:
    running = tuple(range(10_000_000, 10_001_000, 50))
    old, new = Snapshot(10_001_000, running), Snapshot(10_002_000, running)
    assert len(Position(LOG, old).encode()) <= 60
    assert len(Position(LOG, old, new, 123_456_789).encode()) <= 80


def test_a_window_must_run_forwards() -> None:
    with pytest.raises(ValueError, match="was not taken after"):
        Position(LOG, Snapshot(20), Snapshot(10)).encode()
    with pytest.raises(ValueError, match="was not taken after"):
        Position(LOG, Snapshot(20), Snapshot(30, (12,))).encode()


@pytest.mark.parametrize("text", ["", ".", "AQ", "A" * 44, "A" * (MAX_LENGTH + 1)])
def test_what_is_no_position_is_refused(text: str) -> None:
    with pytest.raises(PositionError, match="is not a position"):
        decode(text)


@given(st.text(max_size=80) | st.text("ABCDEFabcdef0123456789-_.", max_size=80))
@example("A0" + 42 * "0")  # by accident, a position that is stored under some key
def test_any_text_is_refused_or_the_only_one_of_its_position(text: str) -> None:
    try:
        position = decode(text)
    except PositionError:
        return
    assert position.encode() == text


@given(st.data(), windows(), ids)
def test_a_tampered_position_is_refused_or_is_another_position(
    data: st.DataObject, window: tuple[Snapshot, Snapshot], last_id: int
) -> None:
    text = Position(LOG, *window, last_id).encode()
    place = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(max_codepoint=255).filter(lambda c: c != text[place]))
    forged = text[:place] + other + text[place + 1 :]
    try:
        position = decode(forged)
    except PositionError:
        return
    assert position.encode() == forged
    if isinstance(position, Position):
        assert len(position.seen.running) <= MAX_LENGTH
        assert 1 <= position.seen.xmax <= MAX_XID


@pytest.mark.parametrize("suffix", [".", ".x", ".-1", ".1.2", ".٣", ".0123", "." + "9" * 30])
def test_the_id_of_a_window_is_digits(suffix: str) -> None:
    text = Position(LOG, Snapshot(5), Snapshot(9), 7).encode().removesuffix(".7")
    with pytest.raises(PositionError):
        decode(text + suffix)


def test_padding_and_spare_bits_are_refused() -> None:
    text = Position(LOG, Snapshot(5)).encode()
    with pytest.raises(PositionError):
        decode(text + "=")
    assert len(text) % 4, "the text must have spare bits for this test to mean anything"
    with pytest.raises(PositionError):
        decode(text[:-1] + chr(ord(text[-1]) + 1))
