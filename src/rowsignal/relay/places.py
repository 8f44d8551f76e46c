"""Places in a stream, as readers of a gateway carry them: its incarnation and a sequence.

A reader that has begun with the current rows carries the snapshot that showed them as well, until
everything it saw has been passed: changes that are in the rows are left out.
"""

import base64
import binascii
import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from rowsignal.change_log.positions import Snapshot
from rowsignal.exceptions import PositionError

PREFIX = "n"
TEXT = re.compile(r"n([0-9a-z]{1,13})\.([1-9]\d{0,18}|0)(?:\.([A-Za-z0-9_-]{1,4000}))?", re.ASCII)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SEEN = re.compile(
    r"(\d{1,19}:\d{1,19}:(?:\d{1,19}(?:,\d{1,19})*)?)(?:@([0-9A-F]{1,16}))?", re.ASCII
)


@dataclass(frozen=True, slots=True)
class Place:
    """After a message of a stream; with `seen`, the changes that this snapshot saw are known.

    `seen_lsn` is where the WAL ended once it was taken, where changes are captured from the WAL.
    """

    incarnation: str
    sequence: int
    seen: Snapshot | None = None
    seen_lsn: int | None = None

    def __str__(self) -> str:
        text = f"{PREFIX}{self.incarnation}.{self.sequence}"
        if self.seen is None:
            return text
        lsn = "" if self.seen_lsn is None else f"@{self.seen_lsn:X}"
        raw = base64.urlsafe_b64encode(f"{self.seen}{lsn}".encode())
        return f"{text}.{raw.rstrip(b'=').decode()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a place; raise `PositionError` for text that is none."""
        found = TEXT.fullmatch(text)
        if found is None:
            raise PositionError(
                f"{text[:60]!r} is no position of a stream: pass one that it carried."
            )
        incarnation, sequence, seen = found.groups()
        if seen is None:
            return cls(incarnation, int(sequence))
        return cls(incarnation, int(sequence), *_snapshot(seen))

    def whole(self) -> Self:
        """Return the place once everything that the snapshot saw is passed."""
        return replace(self, seen=None, seen_lsn=None)

    def at(self, sequence: int) -> Self:
        """Return another place of the same reader."""
        return replace(self, sequence=sequence)


def is_place(text: str) -> bool:
    """Tell whether a text is a place; else it may be a position of the change log."""
    return TEXT.fullmatch(text) is not None


def _snapshot(text: str) -> tuple[Snapshot, int | None]:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        plain = raw.decode("ascii")
    except (binascii.Error, ValueError):
        plain = ""
    found = SEEN.fullmatch(plain)
    if found is None:
        raise PositionError(f"{text[:60]!r} is no snapshot of a stream's position.")
    lsn = found[2]
    return Snapshot.parse(found[1]), None if lsn is None else int(lsn, 16)


def incarnation_of(created: datetime) -> str:
    """Return what tells a stream from one that had its name before: when it was made.

    >>> from datetime import UTC
    >>> incarnation_of(datetime(2026, 11, 30, tzinfo=UTC))
    'homljfgg00'
    """
    number = round(created.timestamp() * 1_000_000)
    digits = ""
    while number:
        number, digit = divmod(number, 36)
        digits = DIGITS[digit] + digits
    return digits
