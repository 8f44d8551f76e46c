"""Changes: their wire form, and who wants them."""

import json
from datetime import UTC, datetime

from rowsignal.changes import Change, ChangeFilter, Operation


def change(**fields: object) -> Change:
    given = {"operation": Operation.UPDATE, "schema": "public", "table": "orders"} | fields
    return Change(**given)  # type: ignore[arg-type] -- fields are what a test is about


def test_the_wire_form_keeps_what_a_browser_would_round() -> None:
    sent = change(
        key={"id": 2**53, "part": True},
        changed=("status",),
        transaction_id=2**60,
        captured_at=datetime(2026, 1, 2, tzinfo=UTC),
        row={"total": "1.10", "lines": [1, 2**60], "note": None},
    ).to_json()
    assert json.loads(sent) == {
        "operation": "update",
        "schema": "public",
        "table": "orders",
        "key": {"id": str(2**53), "part": True},
        "changed": ["status"],
        "position": None,
        "transaction_id": str(2**60),
        "captured_at": "2026-01-02T00:00:00+00:00",
        "row": {"total": "1.10", "lines": [1, str(2**60)], "note": None},
    }


def test_a_filter_takes_what_it_names_and_what_is_unknown() -> None:
    wanted = ChangeFilter(
        keys=({"id": 1},),
        operations=frozenset({Operation.UPDATE, Operation.DELETE}),
        columns=frozenset({"status"}),
        predicate=lambda change: change.transaction_id != 7,
    )
    assert wanted.matches(change(key={"id": 1}, changed=("status", "total")))
    assert wanted.matches(change(key=None, changed=None))
    assert wanted.matches(change(operation=Operation.DELETE, key={"id": 1}))
    assert not wanted.matches(change(key={"id": 2}, changed=("status",)))
    assert not wanted.matches(change(key={"id": 1}, changed=("total",)))
    assert not wanted.matches(change(operation=Operation.INSERT, key={"id": 1}))
    assert not wanted.matches(change(key={"id": 1}, changed=("status",), transaction_id=7))
