"""Positions of a relay: places in the change log, or in the WAL."""

import re
from dataclasses import dataclass
from typing import Self

from rowsignal.change_log.positions import Position, Snapshot
from rowsignal.change_log.positions import decode as decode_log_position
from rowsignal.change_log.positions import incarnation_of as log_incarnation_of
from rowsignal.exceptions import PositionError

TEXT = re.compile(
    r"w([1-9]\d{0,19})\.([1-9]\d{0,9})\.([0-9A-F]{1,16})\.(0|[1-9]\d{0,17})", re.ASCII
)


@dataclass(frozen=True, slots=True)
class WalPosition:
    """A place in the WAL of one server: all before it has been read.

    That is every transaction whose commit record lies before `lsn`, and of the transaction whose
    record lies there the messages up to `number`. `system` and `timeline` say which WAL it is.
    """

    system: int
    timeline: int
    lsn: int
    number: int = 0

    def __str__(self) -> str:
        return f"{prefix_of(self.system, self.timeline, self.lsn)}{self.number}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a position; raise `PositionError` for text that is none.

        >>> WalPosition.parse("w7612345678901234567.1.1A2B3C.4").lsn == 0x1A2B3C
        True
        """
        found = TEXT.fullmatch(text)
        if found is None:
            raise PositionError(f"{text[:60]!r} is no position in the WAL.")
        system, timeline, lsn, number = found.groups()
        return cls(int(system), int(timeline), int(lsn, 16), int(number))


def prefix_of(system: int, timeline: int, lsn: int) -> str:
    """Return what the positions in one transaction begin with; a number completes them."""
    return f"w{system}.{timeline}.{lsn:X}."


def is_of_wal(text: str) -> bool:
    """Tell whether a position is one in the WAL; else it may be one of the change log."""
    return TEXT.fullmatch(text) is not None


def incarnation_of(text: str) -> str:
    """Return which log or which server a position belongs to.

    >>> incarnation_of("w7612345678901234567.1.1A2B3C.4")
    '7612345678901234567'
    """
    if text.startswith("w"):
        return text[1:].partition(".")[0]
    return log_incarnation_of(text)


def passes(text: str, seen: Snapshot, seen_lsn: int | None) -> bool:
    """Tell whether a position lies after everything that a snapshot saw.

    `seen_lsn` is where the WAL ended once the snapshot was taken.
    """
    if is_of_wal(text):
        return seen_lsn is not None and WalPosition.parse(text).lsn >= seen_lsn
    found = decode_log_position(text)
    return isinstance(found, Position) and found.seen.includes(seen)
