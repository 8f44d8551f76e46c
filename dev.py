#!/usr/bin/env python3
"""Prepare `.venv` beside this file and run one of: demo, test, lint, bench."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BASE = getattr(sys, "_base_executable", sys.executable)  # not the one of .venv, which may go
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
USAGE = """\
usage: python3 dev.py demo | test | lint | bench NAME  (further arguments are passed on)

  demo [--once]        show the main job on a PostgreSQL of its own
  test [--pg 15,18]    run the tests, on these major versions of PostgreSQL
  lint                 check style, types and the floor plan
  bench NAME [--json]  measure against a peer"""


def run(*command: object) -> None:
    """Run a command here; raise when it fails."""
    subprocess.run([str(part) for part in command], check=True, cwd=ROOT)


def wanted() -> str:
    """Return a digest of everything that decides what `.venv` holds."""
    files = ("pyproject.toml", "constraints.txt")
    parts = [(ROOT / name).read_bytes() for name in files] + [
        sys.version.encode(),
        str(ROOT).encode(),
    ]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def has_venv() -> bool:
    """Tell whether `.venv` is there and of this very Python."""
    if not PYTHON.exists():
        return False
    asked = [str(PYTHON), "-c", "import sys; print(sys.version)"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip() == (
        sys.version
    )


def installer() -> tuple[object, ...]:
    """Return the command that installs into `.venv`, which is made when it is missing."""
    if uv := shutil.which("uv"):
        if not has_venv():
            run(uv, "venv", "-q", "--clear", "--python", BASE, VENV)
        return (uv, "pip", "install", "-q", "--python", PYTHON)
    if has_venv() and next(VENV.glob("lib/python*/site-packages/pip"), None):
        return (PYTHON, "-m", "pip", "install", "-q")
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        run(BASE, "-m", "venv", VENV)
    except subprocess.CalledProcessError:  # Debian without python3-venv: borrow the outer pip
        shutil.rmtree(VENV, ignore_errors=True)
        run(BASE, "-m", "venv", "--without-pip", VENV)
        return (BASE, "-m", "pip", "--python", PYTHON, "install", "-q")
    return (PYTHON, "-m", "pip", "install", "-q")


def prepare() -> None:
    """Make `.venv` unless it is there and fits."""
    stamp, digest = VENV / ".stamp", wanted()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    print("preparing .venv (once, about a minute) ...", file=sys.stderr)
    run(*installer(), "-c", "constraints.txt", "-e", ".[dev]")
    stamp.write_text(digest)


def lint() -> None:
    """Check style, types and the floor plan."""
    run(PYTHON, "-m", "ruff", "check")
    run(PYTHON, "-m", "ruff", "format", "--check")
    run(PYTHON, "-m", "mypy")
    run(BIN / "lint-imports")


def servers(major: str) -> Iterator[pathlib.Path]:
    """Yield folders that hold PostgreSQL's programs in this major version."""
    folders = [pathlib.Path(f"/usr/lib/postgresql/{major}/bin")]
    folders += VENV.glob("lib/python*/site-packages/*/pginstall*/bin")
    for folder in folders:
        if (folder / "postgres").exists():
            version = subprocess.check_output([folder / "postgres", "--version"], text=True)
            if version.split()[2].startswith(f"{major}."):
                yield folder


def test(arguments: list[str]) -> int:
    """Run the tests, once for each version that `--pg` names."""
    pytest = [str(PYTHON), "-m", "pytest"]
    if not any(argument.startswith("tests") for argument in arguments):
        workers = (os.cpu_count() or 1) + 2  # the whole suite: tests wait more than they work
        pytest += ["-n", str(workers), "--dist", "loadfile"]
    if "--pg" not in arguments:
        return subprocess.call([*pytest, *arguments], cwd=ROOT)
    place = arguments.index("--pg")
    majors, rest = arguments[place + 1].split(","), arguments[:place] + arguments[place + 2 :]
    failed = 0
    for major in majors:
        folder = next(servers(major), None)
        if folder is None:
            print(f"PostgreSQL {major} is not installed: no folder holds it", file=sys.stderr)
            return 2
        print(f"PostgreSQL {major}: {folder}", file=sys.stderr)
        environment = {**os.environ, "ROWSIGNAL_PG_BIN": str(folder)}
        failed |= subprocess.call([*pytest, *rest], cwd=ROOT, env=environment)
    return failed


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    if sys.version_info < (3, 11):  # noqa: UP036 -- whoever runs an older one should read why
        print(
            "rowsignal needs Python 3.11 or newer; this is " + sys.version.split()[0],
            file=sys.stderr,
        )
        return 2
    command, rest = (arguments or ["help"])[0], arguments[1:]
    modules = {"demo": ["rowsignal", "demo"], "bench": ["benchmarks"]}
    if command not in {*modules, "lint", "test"}:
        print(USAGE, file=sys.stderr)
        return 0 if command in {"help", "-h", "--help"} else 2
    try:
        prepare()
        if command == "lint":
            lint()
            return 0
        if command == "test":
            return test(rest)
    except subprocess.CalledProcessError as error:
        return error.returncode
    return subprocess.call([str(PYTHON), "-m", *modules[command], *rest], cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
