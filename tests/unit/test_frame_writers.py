"""Frames of changes: joined from parts, and yet the JSON that is promised."""

import json
from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Column, Integer, MetaData, Table, Text

from rowsignal.changes import Operation
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import exposures_of
from rowsignal.sse.access.frame_writers import FrameWriter

NAME = 'odd "table", of\n{many} %b'
TABLE = Table(
    NAME, MetaData(), Column("id", Integer, primary_key=True), Column("note", Text), schema="s"
)
(EXPOSURE,) = exposures_of([TABLE]).values()
# An offset of seconds is one that no database sends, and no standard knows.
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda it: timezone(timedelta(minutes=it)))
MOMENTS = st.datetimes(
    min_value=datetime(1900, 1, 1),  # noqa: DTZ001 -- the offset is added
    timezones=st.one_of(st.just(UTC), OFFSETS),
)
ROWS = st.fixed_dictionaries({"id": st.integers(-5, 5), "note": st.text() | st.none()})


@given(
    operation=st.sampled_from(Operation),
    key=st.none() | st.fixed_dictionaries({"id": st.integers()}),
    changed=st.none() | st.lists(st.sampled_from(["id", "note", "hidden"]), unique=True).map(tuple),
    new=st.none() | ROWS,
    old=st.none() | ROWS,
    transaction_id=st.none() | st.integers(0, 2**64),
    captured_at=st.none() | MOMENTS,
)
def test_a_frame_holds_what_a_change_says(
    operation, key, changed, new, old, transaction_id, captured_at
):
    writer = FrameWriter(EXPOSURE, None)
    event = Event(operation, EXPOSURE, key, changed, new, old, "7.8", transaction_id, captured_at)
    frame = writer.change(event, operation, with_id=True, with_old=True)
    place, name, data, *rest = frame.decode().split("\n")
    assert (place, name, rest) == ("id: 7.8", f"event: {operation}", ["", ""])
    is_update = operation is Operation.UPDATE
    has_row = operation in {Operation.INSERT, Operation.UPDATE} and new is not None
    shown = [it for it in changed or () if it != "hidden"]
    wide = key is not None and abs(key["id"]) > 2**53 - 1
    assert json.loads(data.removeprefix("data: ")) == {
        "operation": str(operation),
        "schema": "s",
        "table": NAME,
        "key": {"id": str(key["id"])} if wide else key,
        "changed": shown if is_update and changed is not None else None,
        "transaction_id": None if transaction_id is None else str(transaction_id),
        "captured_at": captured_at and captured_at.isoformat(),
        **({"row": new} if has_row else {}),
        **({"old": old} if old is not None else {}),
    }


def test_a_live_frame_has_no_id():
    event = Event(Operation.DELETE, EXPOSURE, {"id": 1}, position="7.8")
    frame = FrameWriter(EXPOSURE, None).change(
        event, Operation.DELETE, with_id=False, with_old=False
    )
    assert frame.startswith(b"event: delete\n")
