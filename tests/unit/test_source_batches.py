"""Batches of a source: split into parts, so that no batch holds up the event loop for long."""

import dataclasses

from hypothesis import given
from hypothesis import strategies as st

from rowsignal.changes import Change, Operation, Reset
from rowsignal.streams.loader import RowChange
from rowsignal.streams.sources import PART, SourceBatch


def change(number: int) -> RowChange:
    return RowChange(
        Change(
            operation=Operation.INSERT,
            schema="public",
            table="orders",
            key={"id": number},
            position=f"p{number}",
        )
    )


@given(st.integers(0, 5 * PART), st.booleans(), st.booleans())
def test_the_parts_of_a_batch_are_the_batch(count: int, unverified: bool, complete: bool) -> None:
    items = [change(number) for number in range(count)]
    batch = SourceBatch(items, "end", is_unverified=unverified, is_complete=complete)
    parts = batch.parts()
    assert [item for part in parts for item in part.items] == items
    assert all(len(part.items) <= PART for part in parts)
    assert len(parts) == max(1, -(-count // PART))
    for part in parts:
        assert dataclasses.replace(part, items=(), position=None) == dataclasses.replace(
            batch, items=(), position=None
        )


def test_each_part_ends_at_the_position_of_its_last_change() -> None:
    batch = SourceBatch([change(number) for number in range(2 * PART + 1)], "end")
    assert [part.position for part in batch.parts()] == [f"p{PART - 1}", f"p{2 * PART - 1}", "end"]


def test_a_part_that_ends_with_a_reset_has_no_position_of_its_own() -> None:
    items = [change(0)] * (PART - 1) + [Reset(reason="changes are missing", position="later")]
    first, last = SourceBatch([*items, change(PART)], "end").parts()
    assert first.position is None
    assert last.position == "end"
