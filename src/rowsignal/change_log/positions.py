"""Positions: places in the change log, and their text.

A position says which transactions have been read, so it holds a snapshot, not a number (PostgreSQL
manual, 9.27.6, "Transaction ID and Snapshot Information"). Its text is base64url of a few bytes:
what it starts with, the log's incarnation, and the snapshot as differences. Between two snapshots
it holds both, and ends in a dot and the id of the last change that was read.
"""

import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self
from uuid import UUID

from rowsignal.exceptions import PositionError

# Positions travel in URLs and headers, of which proxies allow some 4000 characters in all.
MAX_LENGTH = 1000
MAX_XID = 2**63 - 1
MAX_ID = 2**63 - 1

_WHOLE, _WINDOW, _STORED, _STORED_WINDOW = 1, 2, 3, 4
_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The transactions that had committed: those below `xmax` that are not in `running`."""

    xmax: int
    running: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read PostgreSQL's text form, `xmin:xmax:running,...`."""
        _, xmax, running = text.split(":")
        return cls(int(xmax), tuple(map(int, running.split(","))) if running else ())

    def __str__(self) -> str:
        xmin = self.running[0] if self.running else self.xmax
        return f"{xmin}:{self.xmax}:{','.join(map(str, self.running))}"

    def sees(self, xid: int) -> bool:
        """Tell whether a transaction had ended."""
        return xid < self.xmax and xid not in self.running

    def includes(self, older: "Snapshot") -> bool:
        """Tell whether this snapshot sees everything that `older` sees."""
        return older.xmax <= self.xmax and not any(map(older.sees, self.running))


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the log: everything visible in `seen` has been read; with `upto`, more.

    With `upto` what has been read as well is every change that is visible in `upto` and has an id
    of at most `last_id`. Resuming reads the rest of that window, then on from `upto`.
    """

    incarnation: UUID
    seen: Snapshot
    upto: Snapshot | None = None
    last_id: int = 0

    def encode(self) -> str:
        """Return the text; raise `ValueError` when `upto` is no later snapshot than `seen`."""
        if self.upto is None:
            return _text(_WHOLE, self.incarnation, _whole(self.seen))
        return f"{window_prefix(self.incarnation, self.seen, self.upto)}{self.last_id}"


@dataclass(frozen=True, slots=True)
class StoredPosition:
    """A position too long for a header: the server stores it under `key`."""

    incarnation: UUID
    key: UUID
    last_id: int | None = None

    def encode(self) -> str:
        """Return the text."""
        if self.last_id is None:
            return _text(_STORED, self.incarnation, self.key.bytes)
        return f"{stored_prefix(self.incarnation, self.key)}{self.last_id}"


AnyPosition = Position | StoredPosition


def incarnation_of(text: str) -> str:
    """Return which log a position belongs to, without reading the rest of it.

    >>> log = UUID("12345678-1234-5678-1234-567812345678")
    >>> incarnation_of(Position(log, Snapshot(7)).encode())
    '12345678-1234-5678-1234-567812345678'
    """
    # 24 characters are 18 bytes: the kind, the incarnation, and one byte of what follows.
    return _incarnation(text[:24])


@lru_cache(maxsize=1024)
def _incarnation(head: str) -> str:
    raw = binascii.a2b_base64(head.encode("ascii").translate(_FROM_URL))
    return str(UUID(bytes=raw[1:17]))


def window_prefix(incarnation: UUID, seen: Snapshot, upto: Snapshot) -> str:
    """Return the prefix of the positions between two snapshots; an id completes it."""
    return _text(_WINDOW, incarnation, _whole(seen) + _difference(seen, upto)) + "."


def stored_prefix(incarnation: UUID, key: UUID) -> str:
    """Return the prefix of the positions in a stored window; an id completes it."""
    return _text(_STORED_WINDOW, incarnation, key.bytes) + "."


def decode(text: str) -> AnyPosition:
    """Read a position; raise `PositionError` for any text that `encode` would not have made."""
    head, dot, tail = text.partition(".")
    kind, body = _unwrap(head) if len(text) <= MAX_LENGTH else (0, b"")
    if (kind in (_WINDOW, _STORED_WINDOW)) != bool(dot):
        raise _malformed(text)
    try:
        position = _parse(kind, body, _number(tail) if dot else 0)
    except (IndexError, ValueError):
        raise _malformed(text) from None
    # One text per position, so that caches and logs can compare positions.
    if position.encode() != text:
        raise _malformed(text)
    return position


def _parse(kind: int, body: bytes, last_id: int) -> AnyPosition:
    incarnation, rest = UUID(bytes=body[:16]), body[16:]
    if kind in (_STORED, _STORED_WINDOW):
        return StoredPosition(incarnation, UUID(bytes=rest), None if kind == _STORED else last_id)
    numbers = iter(rest)
    seen = _read_whole(numbers)
    upto = _read_difference(numbers, seen) if kind == _WINDOW else None
    if next(numbers, None) is not None:
        raise ValueError("bytes are left over")
    return Position(incarnation, seen, upto, last_id)


def _malformed(text: str) -> PositionError:
    shown = text if len(text) <= 60 else text[:57] + "..."
    return PositionError(
        f"{shown!r} is not a position of a change log; pass one that a change or a stream carried."
    )


def _number(digits: str) -> int:
    if not digits.isascii() or not digits.isdigit() or len(digits) > 19:
        raise ValueError("not an id")
    number = int(digits)
    if number > MAX_ID:
        raise ValueError("no change has that id")
    return number


def _text(kind: int, incarnation: UUID, body: bytes) -> str:
    raw = binascii.b2a_base64(bytes([kind]) + incarnation.bytes + body, newline=False)
    return raw.rstrip(b"=").translate(_TO_URL).decode()


def _unwrap(text: str) -> tuple[int, bytes]:
    try:
        raw = text.encode("ascii").translate(_FROM_URL)
        body = binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error):
        return 0, b""
    return (body[0], body[1:]) if body and _WHOLE <= body[0] <= _STORED_WINDOW else (0, b"")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(numbers: Iterator[int]) -> int:
    result = shift = 0
    for byte in numbers:
        result |= (byte & 0x7F) << shift
        # A forged number could go on without end.
        if result > MAX_XID:
            break
        if byte < 0x80:
            return result
        shift += 7
    raise ValueError("not a number")


def _descending(xmax: int, running: tuple[int, ...]) -> bytes:
    # Running transactions are mostly recent: distances from the top are one or two bytes each.
    parts, above = [_varint(len(running))], xmax
    for xid in reversed(running):
        parts.append(_varint(above - xid))
        above = xid
    return b"".join(parts)


def _read_descending(numbers: Iterator[int], xmax: int, floor: int) -> tuple[int, ...]:
    running, above = [], xmax
    for _ in range(_read_varint(numbers)):
        xid = above - _read_varint(numbers)
        if not floor <= xid < above:
            raise ValueError("running transactions are out of order")
        running.append(xid)
        above = xid
    return tuple(reversed(running))


def _whole(snapshot: Snapshot) -> bytes:
    return _varint(snapshot.xmax) + _descending(snapshot.xmax, snapshot.running)


def _read_whole(numbers: Iterator[int]) -> Snapshot:
    xmax = _read_varint(numbers)
    if xmax < 1:
        raise ValueError("no snapshot is that old")
    return Snapshot(xmax, _read_descending(numbers, xmax, 1))


def _difference(old: Snapshot, new: Snapshot) -> bytes:
    """Encode `new` relative to `old`: a bit for each transaction still running, then newer ones."""
    # Most of what runs in one snapshot still runs in the next: a bit each instead of a number.
    still = [xid for xid in old.running if xid in new.running]
    younger = tuple(xid for xid in new.running if xid >= old.xmax)
    if new.xmax < old.xmax or len(still) + len(younger) != len(new.running):
        raise ValueError(f"the snapshot {new} was not taken after {old}.")
    bits = sum(1 << place for place, xid in enumerate(old.running) if xid in still)
    size = (len(old.running) + 7) // 8
    return (
        _varint(new.xmax - old.xmax)
        + bits.to_bytes(size, "little")
        + _descending(new.xmax, younger)
    )


def _read_difference(numbers: Iterator[int], old: Snapshot) -> Snapshot:
    xmax = old.xmax + _read_varint(numbers)
    size = (len(old.running) + 7) // 8
    bits = int.from_bytes(bytes([next(numbers, 0) for _ in range(size)]), "little")
    still = tuple(xid for place, xid in enumerate(old.running) if bits >> place & 1)
    younger = _read_descending(numbers, xmax, old.xmax)
    if xmax > MAX_XID:
        raise ValueError("no transaction id is that high")
    return Snapshot(xmax, still + younger)
