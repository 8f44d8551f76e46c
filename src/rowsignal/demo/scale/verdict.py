"""Comparison of what one reader received with what was written."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rowsignal.demo.scale.followers import Account, Rows, Seen
from rowsignal.demo.scale.ledger import Entry, RowId

Change = tuple[str, str]  # operation and transaction


@dataclass(slots=True)
class Verdict:
    """Counts of changes: each that was written is received, covered, on its way or lost.

    `covered` ones came before a reset, and are in the rows with which the reader began anew.
    `differing` counts rows that the reader knows otherwise than the database.
    """

    received: int = 0
    covered: int = 0
    waiting: int = 0
    lost: int = 0
    doubled: int = 0
    disordered: int = 0
    unknown: int = 0
    differing: int = 0

    @property
    def faults(self) -> int:
        """The number of faulty changes and rows."""
        return self.lost + self.doubled + self.disordered + self.unknown + self.differing

    def add(self, other: "Verdict") -> None:
        """Add the counts of another reader."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass(slots=True)
class RowHistory:
    """The writes of one row, and a reader's place among them."""

    written: list[Change] = field(default_factory=list)
    reached: int = 0  # of `written`, counted from the first
    skipped: set[int] = field(default_factory=set)
    part: int = 0  # resets before the last change that was received

    def take(self, seen: Seen, verdict: Verdict) -> None:
        """Find the place of a change that was received."""
        change = (seen.operation, seen.transaction)
        place = self._place(change)
        if place is None:
            self._take_again(change, verdict)
            return
        is_first = seen.part != self.part
        missing = range(self.reached, place)
        if is_first:
            verdict.covered += len(missing)
        else:
            verdict.lost += len(missing)
            self.skipped.update(missing)
        verdict.received += 1
        self.reached, self.part = place + 1, seen.part

    def end(self, verdict: Verdict, *, is_known: bool, part: int) -> None:
        """Count what was not received; `is_known`: nothing more comes, and the row is right."""
        rest = len(self.written) - self.reached
        if is_known and part != self.part:
            verdict.covered += rest
        else:
            verdict.waiting += rest

    def _place(self, change: Change) -> int | None:
        places = range(self.reached, len(self.written))
        return next((it for it in places if self.written[it] == change), None)

    def _take_again(self, change: Change, verdict: Verdict) -> None:
        """Count a change that comes after one which was written later, or that was not written."""
        late = next((it for it in self.skipped if self.written[it] == change), None)
        if late is not None:
            self.skipped.discard(late)
            verdict.lost -= 1
            verdict.received += 1
            verdict.disordered += 1
        elif change in self.written:
            verdict.doubled += 1
        else:
            verdict.unknown += 1


def verdict_on(
    accounts: Iterable[Account], entries: Sequence[Entry], stored: Rows | None = None
) -> Verdict:
    """Compare what readers had with the writer's entries; return the sum over all of them.

    `stored` are the rows of the database, once nothing more is to come.
    """
    whole = Verdict()
    for account in accounts:
        whole.add(_verdict(account, entries, stored))
    return whole


def _verdict(account: Account, entries: Sequence[Entry], stored: Rows | None) -> Verdict:
    histories: dict[RowId, RowHistory] = defaultdict(RowHistory)
    for entry in entries:
        histories[entry.row].written.append((entry.operation, entry.transaction))
    verdict = Verdict()
    for seen in account.seen:
        histories[seen.row].take(seen, verdict)
    rows = account.rows
    for row, history in histories.items():
        is_known = stored is not None and rows.get(row) == stored.get(row)
        history.end(verdict, is_known=is_known, part=account.resets)
    if stored is not None:
        verdict.differing = sum(rows.get(row) != stored.get(row) for row in {*rows, *stored})
        verdict.lost, verdict.waiting = verdict.lost + verdict.waiting, 0
    return verdict
