"""Places: positions as the database stores them, which it can compare."""

from dataclasses import dataclass
from functools import lru_cache
from uuid import UUID

import asyncpg

from rowsignal.change_log.positions import (
    MAX_LENGTH,
    Position,
    Snapshot,
    StoredPosition,
    decode,
)
from rowsignal.postgres.statements import query

Snapshots = tuple[str, str | None]


@dataclass(frozen=True, slots=True)
class Place:
    """Everything visible in `seen` is handled; of `upto`, ids up to `last_id`.

    Unlike a position it holds no incarnation of the log. It is written to the WAL after all changes
    that it includes, so a crash that loses transactions loses it as well.
    """

    seen: str
    upto: str | None = None
    last_id: int = 0


async def place_of(driver: asyncpg.Connection, text: str) -> Place:
    """Return the place of a position."""
    prefix, dot, last = text.partition(".")
    # Without the id of the change, so that all positions of a batch are one entry of the cache.
    found = _snapshots(f"{prefix}.0" if dot else text)
    if isinstance(found, UUID):
        row = await driver.fetchrow(query("log_stored_position"), found)
        if row is None:
            raise LookupError(f"The server no longer has the position {text[:60]}.")
        found = (row["before"], row["after"])
    return Place(found[0], found[1], int(last or 0))


@lru_cache(maxsize=256)
def _snapshots(text: str) -> Snapshots | UUID:
    """Return the snapshots of a position, or the key under which the server stores them."""
    position = decode(text)
    if isinstance(position, StoredPosition):
        return position.key
    upto = None if position.upto is None else str(position.upto)
    return str(position.seen), upto


async def position_of(driver: asyncpg.Connection, place: Place, incarnation: UUID) -> str:
    """Return the position of a place in the present log."""
    seen = Snapshot.parse(place.seen)
    upto = None if place.upto is None else Snapshot.parse(place.upto)
    text = Position(incarnation, seen, upto, place.last_id).encode()
    if len(text) <= MAX_LENGTH:
        return text
    key = await driver.fetchval(query("log_store_position"), place.seen, place.upto)
    last_id = None if upto is None else place.last_id
    return StoredPosition(incarnation, key, last_id).encode()
