"""The comparison of what readers of the demonstration received with what was written."""

from typing import Any

import pytest

from rowsignal.demo.scale.followers import Account, Seen
from rowsignal.demo.scale.ledger import Entry
from rowsignal.demo.scale.report import ScaleReport
from rowsignal.demo.scale.verdict import Verdict, verdict_on

ROW, OTHER = ("shop.items", 1), ("shop.items", 2)
ENTRIES = [Entry(number, ROW, "update", str(number)) for number in range(1, 6)]
STORED = {ROW: {"id": 1, "stock": 5}}


def account(*numbers: int, resets: int = 0, part: int = 0, **row: Any) -> Account:
    """Return what a reader has that received changes of some transactions."""
    seen = [Seen(part, ROW, "update", str(number)) for number in numbers]
    return Account(seen, resets, {ROW: row or {"id": 1, "stock": 5}})


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1, 2, 3, 4, 5), Verdict(received=5)),
        ((1, 2, 4, 5), Verdict(received=4, lost=1)),
        ((1, 2, 3), Verdict(received=3, lost=2)),
        ((1, 2, 2, 3, 4, 5), Verdict(received=5, doubled=1)),
        ((1, 3, 2, 4, 5), Verdict(received=5, disordered=1)),
        ((1, 2, 3, 4, 5, 9), Verdict(received=5, unknown=1)),
        ((), Verdict(lost=5)),
    ],
)
def test_each_fault_is_counted_as_what_it_is(numbers: tuple[int, ...], expected: Verdict) -> None:
    assert verdict_on([account(*numbers)], ENTRIES, STORED) == expected


def test_changes_are_on_their_way_while_more_is_written() -> None:
    assert verdict_on([account(1, 2)], ENTRIES) == Verdict(received=2, waiting=3)


def test_what_came_before_a_reset_is_in_the_rows_that_follow_it() -> None:
    before, after = account(1), account(4, 5, resets=1, part=1)
    both = Account([*before.seen, *after.seen], 1, after.rows)
    assert verdict_on([both], ENTRIES, STORED) == Verdict(received=3, covered=2)


def test_a_row_that_is_not_told_of_after_a_reset_must_be_as_it_is_stored() -> None:
    right, wrong = account(1, 2, resets=1), account(1, 2, resets=1, id=1, stock=2)
    assert verdict_on([right], ENTRIES, STORED) == Verdict(received=2, covered=3)
    assert verdict_on([wrong], ENTRIES, STORED) == Verdict(received=2, lost=3, differing=1)


def test_rows_that_differ_are_a_fault_also_where_every_change_came() -> None:
    extra = account(1, 2, 3, 4, 5)
    known = Account(extra.seen, 0, {**extra.rows, OTHER: {"id": 2}})
    assert verdict_on([known], ENTRIES, STORED) == Verdict(received=5, differing=1)


@pytest.mark.parametrize(
    ("verdict", "is_good"),
    [
        (Verdict(received=5), True),
        (Verdict(received=5, covered=3), True),
        (Verdict(), False),
        (Verdict(received=5, lost=1), False),
        (Verdict(received=5, doubled=1), False),
        (Verdict(received=5, disordered=1), False),
        (Verdict(received=5, unknown=1), False),
        (Verdict(received=5, differing=1), False),
    ],
)
def test_one_fault_makes_a_report_bad(verdict: Verdict, *, is_good: bool) -> None:
    report = ScaleReport(
        postgres_version="18.6",
        nats_version="2.15.1",
        seconds=1,
        written=5,
        readers=1,
        hops=0,
        resets=0,
        kills={},
        verdict=verdict,
    )
    assert report.is_good is is_good
