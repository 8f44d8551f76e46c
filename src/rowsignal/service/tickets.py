"""Tickets: admission for one stream, for clients that can send no header.

A ticket stands in an address, which proxies and browsers write down. So it holds no token, is good
for seconds, and for one use. Workers of a host share a folder of spent ones.
"""

import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any

import jwt

from rowsignal.exceptions import AccessDeniedError

AUDIENCE = "rowsignal ticket"
ALGORITHM = "HS256"


class TicketOffice:
    """Issues tickets and takes each once."""

    def __init__(self, folder: Path, lifetime: float) -> None:
        self.lifetime = lifetime
        self._folder = _private(folder)
        self._secret = _shared_secret(self._folder)

    def issue(self, claims: dict[str, Any]) -> str:
        """Return a ticket that stands for the claims of a token."""
        self._sweep()
        body = {
            "aud": AUDIENCE,
            "exp": time.time() + self.lifetime,
            "jti": secrets.token_hex(16),
            "claims": claims,
        }
        return jwt.encode(body, self._secret, ALGORITHM)

    def redeem(self, ticket: str) -> dict[str, Any]:
        """Return the claims that a ticket stands for; raise `AccessDeniedError` the second time."""
        try:
            body = jwt.decode(
                ticket,
                self._secret,
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                options={"require": ["exp", "jti"]},
            )
        except jwt.PyJWTError:
            raise AccessDeniedError("The ticket is not valid, or not any more.") from None
        try:
            (self._folder / f"{body['jti']}.spent").open("x").close()
        except FileExistsError:
            raise AccessDeniedError("The ticket has been used: ask for another.") from None
        claims: dict[str, Any] = body["claims"]
        return claims

    def _sweep(self) -> None:
        """Forget spent tickets that have expired since."""
        oldest = time.time() - 2 * self.lifetime
        for path in self._folder.glob("*.spent"):
            try:
                if path.stat().st_mtime < oldest:
                    path.unlink()
            except FileNotFoundError:  # another worker was quicker
                continue


def _private(folder: Path) -> Path:
    """Make the folder; refuse one that others could have prepared."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if hasattr(os, "getuid"):
        is_ours = is_ours and found.st_uid == os.getuid()
    if not is_ours:
        raise PermissionError(
            f"{folder} is not a folder of this user alone (mode 700): set ROWSIGNAL_TICKET_DIR."
        )
    return folder


def _shared_secret(folder: Path) -> str:
    """Return the secret of the folder; the first of several workers makes it."""
    path, draft = folder / "secret", folder / f"{secrets.token_hex(8)}.draft"
    if not path.exists():
        draft.touch(mode=0o600)
        draft.write_text(secrets.token_hex(32))
        try:
            # A link appears complete or not at all, and never replaces another's.
            path.hardlink_to(draft)
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    return path.read_text()
