"""Commands of the npm workspace that holds the JavaScript packages."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WORKSPACE = Path(__file__).parents[2] / "clients" / "js"
PACKAGES = WORKSPACE / "packages"
LOCK = WORKSPACE / "package-lock.json"
MODULES = WORKSPACE / "node_modules"
OLDEST = 20


def found_node() -> str:
    """Path of a usable Node; skips the test without one, unless the run requires it."""
    missing = _missing()
    if missing and "node" in os.environ.get("ROWSIGNAL_REQUIRE", ""):
        pytest.fail(f"Node is required by ROWSIGNAL_REQUIRE: {missing}")
    if missing:
        pytest.skip(missing)
    return str(shutil.which("node"))


def _missing() -> str:
    if not (shutil.which("node") and shutil.which("npm")):
        return f"needs node and npm on PATH (Node {OLDEST} or newer)"
    version = subprocess.check_output(["node", "--version"], text=True).strip()
    is_old = int(version.removeprefix("v").partition(".")[0]) < OLDEST
    return f"needs Node {OLDEST} or newer; this is {version}" if is_old else ""


def run(*command: object, cwd: Path = WORKSPACE, **variables: str) -> str:
    """Run a command of the workspace; return what it prints, or fail with it."""
    outcome = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, f"{command}\n{outcome.stdout}"
    return outcome.stdout


@contextmanager
def only_one() -> Iterator[None]:
    """Keep other processes of this run out of the workspace."""
    with LOCK.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(name: str, inputs: list[Path], *command: object) -> None:
    """Run a command unless it has been run with these very inputs."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()
    stamp = MODULES / f".{name}-stamp"
    if not stamp.exists() or stamp.read_text() != digest:
        run(*command)
        stamp.write_text(digest)


def sources() -> list[Path]:
    """Everything that the built packages are made of."""
    code = [*PACKAGES.glob("*/src/**/*.ts"), *PACKAGES.glob("*/*.json")]
    return sorted([LOCK, *code, *WORKSPACE.glob("*.json"), *WORKSPACE.glob("scripts/*")])
