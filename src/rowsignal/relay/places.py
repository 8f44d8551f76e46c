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

from rowsignal.change_log.positions import Position, Snapshot
from rowsignal.change_log.positions import decode as decode_position
from rowsignal.exceptions import PositionError

PREFIX = "n"
TEXT = re.compile(r"n([0-9a-z]{1,13})\.([1-9]\d{0,18}|0)(?:\.([A-Za-z0-9_-]{1,4000}))?", re.ASCII)
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
RUNNING = re.compile(r"\d{1,19}:\d{1,19}:(\d{1,19}(,\d{1,19})*)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """After a message of a stream; with `seen`, the changes that this snapshot saw are known."""

    incarnation: str
    sequence: int
    seen: Snapshot | None = None

    def __str__(self) -> str:
        text = f"{PREFIX}{self.incarnation}.{self.sequence}"
        if self.seen is None:
            return text
        raw = base64.urlsafe_b64encode(str(self.seen).encode())
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
        return cls(incarnation, int(sequence), None if seen is None else _snapshot(seen))

    def at(self, sequence: int) -> Self:
        """Return another place of the same reader."""
        return replace(self, sequence=sequence)


def is_place(text: str) -> bool:
    """Tell whether a text is a place; else it may be a position of the change log."""
    return TEXT.fullmatch(text) is not None


def _snapshot(text: str) -> Snapshot:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        plain = raw.decode("ascii")
    except (binascii.Error, ValueError):
        plain = ""
    if RUNNING.fullmatch(plain) is None:
        raise PositionError(f"{text[:60]!r} is no snapshot of a stream's position.")
    return Snapshot.parse(plain)


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


def passes(position: str, seen: Snapshot) -> bool:
    """Tell whether a position of the log lies after everything that a snapshot saw."""
    found = decode_position(position)
    return isinstance(found, Position) and found.seen.includes(seen)
