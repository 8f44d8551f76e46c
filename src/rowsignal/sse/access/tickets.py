"""Tickets: one-time rights to open a stream, for clients that cannot send a header.

A ticket is part of an address, which proxies and browsers log. So it is a random text without
content, is valid for seconds and for one use, and expires with its grant.
"""

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

from rowsignal.changes import Operation
from rowsignal.exceptions import AccessDeniedError, ReaderLimitError
from rowsignal.sse.access.grants import Grant, TableGrant
from rowsignal.sse.sharing import SharedTickets

MAX_OPEN = 100
TICKET = re.compile(r"([0-9a-f]{16})-[0-9A-Za-z_-]{43}", re.ASCII)
REFUSAL = "The ticket has been used, has expired or was never issued: ask for another."


class TicketStore(Protocol):
    """Storage of unused tickets, by owner and digest."""

    secret: bytes

    def put(self, owner: str, digest: str, text: str) -> None:
        """Store a ticket."""

    def take(self, owner: str, digest: str) -> str | None:
        """Return and remove a stored ticket; None if there is none."""

    def open_of(self, owner: str) -> int:
        """Return the number of stored tickets of an owner."""

    def sweep(self, before: float) -> None:
        """Remove tickets stored before a time."""


class TicketOffice:
    """Issues tickets and redeems each once.

    By default this process stores them. `folder` is a private folder (mode 700) that several
    processes of a host share, so that each of them accepts the tickets of the others.
    """

    def __init__(self, folder: Path | None = None, *, lifetime: float = 30.0) -> None:
        self.lifetime = lifetime
        self._store: TicketStore = MemoryStore() if folder is None else FolderStore(folder)
        self._swept_at = 0.0

    @property
    def secret(self) -> bytes:
        """The secret that all processes with this store share."""
        return self._store.secret

    def issue(self, grant: Grant) -> str:
        """Return a ticket for a grant; raise `ReaderLimitError` if too many are unused."""
        self._sweep()
        owner = _owner_of(grant, self.secret)
        _check_open(self._store.open_of(owner))
        ticket = _new_ticket(owner)
        self._store.put(owner, _digest(ticket), _text_of(grant, self.lifetime))
        return ticket

    def redeem(self, ticket: str) -> Grant:
        """Return the grant of a ticket; raise `AccessDeniedError` if it is unknown or used."""
        found = TICKET.fullmatch(ticket)
        return _grant_in(None if found is None else self._store.take(found[1], _digest(ticket)))

    def _sweep(self) -> None:
        now = time.time()
        if now - self._swept_at > 1:
            self._swept_at = now
            self._store.sweep(now - self.lifetime)


class SharedTicketOffice:
    """Issues tickets and redeems each once, over all hosts that share a store.

    The store forgets tickets by itself. Hosts with one `secret` count the tickets of a principal
    together. Raises `UnavailableError` while the store does not answer: a ticket that cannot be
    looked up may have been used.
    """

    def __init__(self, store: SharedTickets, secret: bytes, *, lifetime: float = 30.0) -> None:
        self.lifetime = lifetime
        self.secret = secret
        self._store = store

    async def issue(self, grant: Grant) -> str:
        """Return a ticket for a grant; raise `ReaderLimitError` if too many are unused."""
        owner = _owner_of(grant, self.secret)
        _check_open(await self._store.open_of(owner))
        ticket = _new_ticket(owner)
        await self._store.put(owner, _digest(ticket), _text_of(grant, self.lifetime))
        return ticket

    async def redeem(self, ticket: str) -> Grant:
        """Return the grant of a ticket; raise `AccessDeniedError` if it is unknown or used."""
        found = TICKET.fullmatch(ticket)
        taken = None if found is None else await self._store.take(found[1], _digest(ticket))
        return _grant_in(taken)


class MemoryStore:
    """Stores the tickets of this process."""

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)
        self._kept: dict[tuple[str, str], tuple[float, str]] = {}

    def put(self, owner: str, digest: str, text: str) -> None:
        """Store a ticket."""
        self._kept[owner, digest] = time.time(), text

    def take(self, owner: str, digest: str) -> str | None:
        """Return and remove a stored ticket; None if there is none."""
        _, text = self._kept.pop((owner, digest), (0.0, None))
        return text

    def open_of(self, owner: str) -> int:
        """Count the tickets of an owner."""
        return sum(name == owner for name, _ in self._kept)

    def sweep(self, before: float) -> None:
        """Remove old tickets."""
        self._kept = {name: kept for name, kept in self._kept.items() if kept[0] >= before}


class FolderStore:
    """Stores tickets as files; only the process that removes a file has redeemed the ticket."""

    def __init__(self, folder: Path) -> None:
        self._folder = _private(folder)
        self.secret = _shared_secret(self._folder)

    def put(self, owner: str, digest: str, text: str) -> None:
        """Write the ticket to a file that only this user may read."""
        place = self._folder / owner
        place.mkdir(mode=0o700, exist_ok=True)
        _write_new(place / digest, text)

    def take(self, owner: str, digest: str) -> str | None:
        """Read and remove a file; only the process that removed it has redeemed the ticket."""
        path = self._folder / owner / digest
        try:
            text = path.read_text()
            path.unlink()
        except FileNotFoundError:
            return None
        return text

    def open_of(self, owner: str) -> int:
        """Count the files of an owner."""
        return sum(1 for _ in _files(self._folder / owner))

    def sweep(self, before: float) -> None:
        """Remove old files."""
        places = [place for place in self._folder.iterdir() if place.is_dir()]
        for path in chain.from_iterable(map(_files, places)):
            with suppress(FileNotFoundError):  # another process was faster
                if path.stat().st_mtime < before:
                    path.unlink()


def _files(place: Path) -> Iterator[Path]:
    return place.iterdir() if place.is_dir() else iter(())


def _write_new(path: Path, text: str) -> None:
    """Create a file that only this user may read."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)


def _owner_of(grant: Grant, secret: bytes) -> str:
    return hmac.new(secret, grant.principal.encode(), hashlib.sha256).hexdigest()[:16]


def _check_open(count: int) -> None:
    if count >= MAX_OPEN:
        raise ReaderLimitError(
            f"You have {MAX_OPEN} unused tickets: use them, or wait until they expire.",
            is_own=True,
        )


def _new_ticket(owner: str) -> str:
    return f"{owner}-{secrets.token_urlsafe(32)}"


def _text_of(grant: Grant, lifetime: float) -> str:
    until = time.time() + lifetime
    kept = {"until": min(until, grant.expires_at or until), "grant": _as_dict(grant)}
    return json.dumps(kept)


def _grant_in(text: str | None) -> Grant:
    kept: dict[str, Any] = {"until": 0.0} if text is None else json.loads(text)
    if kept["until"] <= time.time():
        raise AccessDeniedError(REFUSAL)
    return _as_grant(kept["grant"])


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()


def _as_dict(grant: Grant) -> dict[str, Any]:
    tables = {
        name: {
            "columns": _listed(it.columns),
            "operations": _listed(it.operations),
            "where": it.where,
        }
        for name, it in grant.tables.items()
    }
    return {"tables": tables, "principal": grant.principal, "expires_at": grant.expires_at}


def _listed(names: frozenset[Any] | None) -> list[str] | None:
    return None if names is None else sorted(map(str, names))


def _as_grant(kept: dict[str, Any]) -> Grant:
    tables = {name: _as_table_grant(**it) for name, it in kept["tables"].items()}
    return Grant(tables=tables, principal=kept["principal"], expires_at=kept["expires_at"])


def _as_table_grant(
    *, columns: list[str] | None, operations: list[str] | None, where: list[str]
) -> TableGrant:
    return TableGrant(
        columns=None if columns is None else frozenset(columns),
        operations=None if operations is None else frozenset(map(Operation, operations)),
        where=tuple(where),
    )


def _private(folder: Path) -> Path:
    """Create the folder; refuse one that other users may write."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if hasattr(os, "getuid"):
        is_ours = is_ours and found.st_uid == os.getuid()
    if not is_ours:
        raise PermissionError(
            f"{folder} is not a folder of this user alone (mode 700): choose another folder for"
            " tickets (ROWSIGNAL_TICKET_DIR)."
        )
    return folder


def _shared_secret(folder: Path) -> bytes:
    """Return the secret of the folder; the first process creates it."""
    path, draft = folder / "secret", folder / f"{secrets.token_hex(8)}.draft"
    if not path.exists():
        _write_new(draft, secrets.token_hex(32))
        try:
            # A link appears complete or not at all, and never replaces an existing file.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return bytes.fromhex(path.read_text())
