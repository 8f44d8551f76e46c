"""The data folder of a server: its owner, its version, and the process that uses it."""

import errno
import os
import stat
from pathlib import Path
from typing import TextIO, cast

from rowsignal.embedded.programs import Account, Programs, can_enter
from rowsignal.exceptions import EmbeddedPostgresError

MODES = {os.O_RDONLY: "r", os.O_WRONLY: "a", os.O_RDWR: "r+"}
# Windows has neither, and no root that opens files for another user.
GUARDS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
READY_STATES = ("ready", "standby")


def account_for(data_dir: Path, account: Account | None) -> Account | None:
    """Return the account for a server on this folder: its owner, if this process is root."""
    if account is None or not data_dir.exists():
        return account
    status = data_dir.stat()
    return Account(status.st_uid, status.st_gid) if status.st_uid else account


def prepare(data_dir: Path, programs: Programs) -> bool:
    """Create the folder if it is missing, and tell whether it holds data.

    Raises `EmbeddedPostgresError` for a folder that cannot be used, for data of another major
    version, and for data that a running server has in use.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        has_data = (data_dir / "PG_VERSION").exists()
        is_empty = not any(data_dir.iterdir())
    except OSError as error:
        raise EmbeddedPostgresError(f"data_dir cannot be used: {error}.") from error
    if not has_data and not is_empty:
        raise EmbeddedPostgresError(
            f"{data_dir} holds something else than PostgreSQL's data: "
            "choose an empty folder, or one that does not exist yet, as data_dir."
        )
    _make_reachable(data_dir, programs.account)
    if has_data:
        _refuse_other_major(data_dir, programs)
        _refuse_data_in_use(data_dir)
    return has_data


def is_ready(data_dir: Path, pid: int) -> bool:
    """Tell whether the server with this process id accepts connections (manual, 66.1).

    `postmaster.pid` has the process id in the first line and the state in the eighth.
    """
    try:
        with open_plain(data_dir / "postmaster.pid") as pid_file:
            lines = pid_file.read().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() in READY_STATES


def _make_reachable(data_dir: Path, account: Account | None) -> None:
    if account is None:
        return
    if data_dir.stat().st_uid == 0:
        os.chown(data_dir, *account)
        # By open folders, not by paths, so that a folder cannot be replaced by a link.
        for _, folders, files, place in os.fwalk(data_dir, follow_symlinks=False):
            for name in (*folders, *files):
                os.chown(name, *account, dir_fd=place, follow_symlinks=False)
    if not can_enter(data_dir, account):
        raise EmbeddedPostgresError(
            f"The server cannot run as root, and its user, with the id {account.uid}, cannot "
            f"reach {data_dir}: choose a data_dir below folders that everybody may enter."
        )


def _refuse_other_major(data_dir: Path, programs: Programs) -> None:
    with open_plain(data_dir / "PG_VERSION") as version_file:
        made_by = version_file.read().strip()
    if made_by != programs.major:
        raise EmbeddedPostgresError(
            f"The data in {data_dir} was made by PostgreSQL {made_by}, and the programs in "
            f"{programs.bin_dir} are {programs.version}: set ROWSIGNAL_PG_BIN or bin_dir to "
            f"those of PostgreSQL {made_by}, or choose another data_dir."
        )


def _refuse_data_in_use(data_dir: Path) -> None:
    """Raise if a server uses the data; release data with a pid file left by a crash.

    PostgreSQL checks only whether *some* process has the id in that file, and refuses to start if
    another program has the id now. It treats its parent's id as stale; the file itself must stay,
    since it names the shared memory that orphans may still write to.
    """
    pid_file = data_dir / "postmaster.pid"
    if not pid_file.exists() or not Path("/proc/self").exists():
        return
    with open_plain(pid_file) as found:
        first, separator, rest = found.read().partition("\n")
    if not first.lstrip("-").isdecimal():
        return
    if _works_in(int(first.lstrip("-")), data_dir):
        raise EmbeddedPostgresError(
            f"A server with the process id {first} has the data in {data_dir} in use: "
            "stop it, or choose another data_dir."
        )
    with open_plain(pid_file, os.O_RDWR) as stale:
        stale.write(f"{os.getpid()}{separator}{rest}")
        stale.truncate()


def open_plain(path: Path, flags: int = os.O_RDONLY) -> TextIO:
    """Open a plain file of the data folder; refuse links and other kinds.

    Root opens it in a folder of another user, where a link could lead to any file of the system.
    """
    try:
        handle = os.open(path, flags | GUARDS, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise EmbeddedPostgresError(f"{path} is a link, which is not followed.") from error
        raise
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
        os.close(handle)
        raise EmbeddedPostgresError(f"{path} is not a plain file with one name.")
    mode = MODES[flags & os.O_ACCMODE]
    return cast("TextIO", os.fdopen(handle, mode, errors="replace"))


def _works_in(pid: int, folder: Path) -> bool:
    try:
        return Path(f"/proc/{pid}/cwd").samefile(folder)
    except OSError:
        return False
