"""Tickets: admission for one stream, for clients that cannot send a header.

A ticket stands in an address, which proxies and browsers write down. So it is a random text that
says nothing, is good for seconds and for one use, and ends with the grant that it stands for.
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

MAX_OPEN = 100
TICKET = re.compile(r"([0-9a-f]{16})-[0-9A-Za-z_-]{43}", re.ASCII)
REFUSAL = "The ticket has been used, has expired or was never issued: ask for another."


class TicketStore(Protocol):
    """Where open tickets are kept, by owner and digest."""

    secret: bytes

    def put(self, owner: str, digest: str, text: str) -> None:
        """Keep one."""

    def take(self, owner: str, digest: str) -> str | None:
        """Return what was kept, once; None after that."""

    def open_of(self, owner: str) -> int:
        """Return how many tickets of an owner are kept."""

    def sweep(self, before: float) -> None:
        """Forget what was put before a time."""


class TicketOffice:
    """Issues tickets and takes each once.

    By default it keeps them in this process. `folder` is a private folder (mode 700) that several
    processes of a host share, so that each of them takes the tickets of the others.
    """

    def __init__(self, folder: Path | None = None, *, lifetime: float = 30.0) -> None:
        self.lifetime = lifetime
        self._store: TicketStore = MemoryStore() if folder is None else FolderStore(folder)
        self._swept_at = 0.0

    @property
    def secret(self) -> bytes:
        """A secret that all processes with this store share."""
        return self._store.secret

    def issue(self, grant: Grant) -> str:
        """Return a ticket for a grant; raise `ReaderLimitError` for too many unused ones."""
        self._sweep()
        owner = hmac.new(self.secret, grant.principal.encode(), hashlib.sha256).hexdigest()[:16]
        if self._store.open_of(owner) >= MAX_OPEN:
            raise ReaderLimitError(
                f"You have {MAX_OPEN} unused tickets: use them, or wait until they expire.",
                is_own=True,
            )
        ticket = f"{owner}-{secrets.token_urlsafe(32)}"
        until = time.time() + self.lifetime
        kept = {"until": min(until, grant.expires_at or until), "grant": _as_dict(grant)}
        self._store.put(owner, _digest(ticket), json.dumps(kept))
        return ticket

    def redeem(self, ticket: str) -> Grant:
        """Return the grant that a ticket stands for; raise `AccessDeniedError` the second time."""
        found = TICKET.fullmatch(ticket)
        text = None if found is None else self._store.take(found[1], _digest(ticket))
        kept: dict[str, Any] = {"until": 0.0} if text is None else json.loads(text)
        if kept["until"] <= time.time():
            raise AccessDeniedError(REFUSAL)
        return _as_grant(kept["grant"])

    def _sweep(self) -> None:
        now = time.time()
        if now - self._swept_at > 1:
            self._swept_at = now
            self._store.sweep(now - self.lifetime)


class MemoryStore:
    """Tickets of this process."""

    def __init__(self) -> None:
        self.secret = secrets.token_bytes(32)
        self._kept: dict[tuple[str, str], tuple[float, str]] = {}

    def put(self, owner: str, digest: str, text: str) -> None:
        """Keep one."""
        self._kept[owner, digest] = time.time(), text

    def take(self, owner: str, digest: str) -> str | None:
        """Return what was kept, once."""
        _, text = self._kept.pop((owner, digest), (0.0, None))
        return text

    def open_of(self, owner: str) -> int:
        """Count the tickets of an owner."""
        return sum(name == owner for name, _ in self._kept)

    def sweep(self, before: float) -> None:
        """Forget old ones."""
        self._kept = {name: kept for name, kept in self._kept.items() if kept[0] >= before}


class FolderStore:
    """Tickets as files: a file can be removed once only, by whichever process comes first."""

    def __init__(self, folder: Path) -> None:
        self._folder = _private(folder)
        self.secret = _shared_secret(self._folder)

    def put(self, owner: str, digest: str, text: str) -> None:
        """Write a file that only this user reads."""
        place = self._folder / owner
        place.mkdir(mode=0o700, exist_ok=True)
        _write_new(place / digest, text)

    def take(self, owner: str, digest: str) -> str | None:
        """Read a file and remove it; the process that removed it has taken the ticket."""
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
            with suppress(FileNotFoundError):  # another worker was quicker
                if path.stat().st_mtime < before:
                    path.unlink()


def _files(place: Path) -> Iterator[Path]:
    return place.iterdir() if place.is_dir() else iter(())


def _write_new(path: Path, text: str) -> None:
    """Write a file that only this user reads, and that was not there before."""
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text)


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
    """Make the folder; refuse one that others could have prepared."""
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
    """Return the secret of the folder; the first of several workers makes it."""
    path, draft = folder / "secret", folder / f"{secrets.token_hex(8)}.draft"
    if not path.exists():
        _write_new(draft, secrets.token_hex(32))
        try:
            # A link appears complete or not at all, and never replaces another's.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return bytes.fromhex(path.read_text())
