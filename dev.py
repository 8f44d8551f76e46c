#!/usr/bin/env python3
"""Prepare `.venv` beside this file and run one of: demo, test, lint, bench, docs, release."""

import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent
VENV = ROOT / ".venv"
BASE = getattr(sys, "_base_executable", sys.executable)  # not the one of .venv, which may go
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
USAGE = """\
usage: python3 dev.py demo | test | lint | bench NAME | docs | release
       (further arguments are passed on)

  demo [--once]        show the main job on a PostgreSQL of its own
  demo --scale         show NATS, relays and gateways, parts of which are killed
  test [--pg 15,18]    run the tests, on these major versions of PostgreSQL
  lint                 check style, types and the floor plan
  bench NAME [--json]  measure against a peer
  docs [--serve]       build the site of the documentation into `site/`, or serve it
  release --dry-run    build what is published, and check it as its users meet it"""
REFRESH = 0.5  # seconds between two states of the progress line
REPORT = 10.0  # the same where the output is no terminal


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
        return (uv, "pip", "install", "--python", PYTHON)
    pip = (PYTHON, "-m", "pip", "install", "--no-color", "--progress-bar", "off")
    if has_venv() and next(VENV.glob("lib/python*/site-packages/pip"), None):
        return pip
    shutil.rmtree(VENV, ignore_errors=True)
    try:
        run(BASE, "-m", "venv", VENV)
    except subprocess.CalledProcessError:  # Debian without python3-venv: borrow the outer pip
        shutil.rmtree(VENV, ignore_errors=True)
        run(BASE, "-m", "venv", "--without-pip", VENV)
        return (BASE, "-m", "pip", "--python", PYTHON, *pip[3:])
    return pip


def prepare() -> None:
    """Make `.venv` unless it is there and fits."""
    stamp, digest = VENV / ".stamp", wanted()
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == digest:
        return
    print("preparing .venv, once: one to three minutes ...", file=sys.stderr, flush=True)
    install(*installer(), "-c", "constraints.txt", "-e", ".[dev]")
    stamp.write_text(digest)


def install(*command: object) -> None:
    """Run the installer behind one line of progress; print what it wrote where it fails."""
    began, wait = time.monotonic(), REFRESH if sys.stderr.isatty() else REPORT
    parts, log = [str(part) for part in command], VENV / "install.log"
    with log.open("w") as output:
        process = subprocess.Popen(parts, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        while process.poll() is None:
            try:
                process.wait(wait)
            except subprocess.TimeoutExpired:
                show(f"{progress(log)}, {time.monotonic() - began:.0f} s")
    if process.returncode:
        print(f"\n{log.read_text(errors='replace')}", file=sys.stderr)
        raise subprocess.CalledProcessError(process.returncode, parts)
    show(f"done in {time.monotonic() - began:.0f} s", end="\n")


def progress(log: pathlib.Path) -> str:
    """Tell how far an installation is, by what it has written and put into place."""
    lines = log.read_text(errors="replace").splitlines()
    found = sum(line.startswith("Collecting ") for line in lines)
    installed = len(list(VENV.glob("lib/python*/site-packages/*.dist-info")))
    return f"{found} packages fetched, {installed} installed"


def show(state: str, end: str = "") -> None:
    """Write the progress line: over the last one in a terminal, else as a line of its own."""
    line = f"preparing .venv: {state}"
    is_terminal = sys.stderr.isatty()
    print(
        f"\r{line:<70}" if is_terminal else line,
        end=end if is_terminal else "\n",
        file=sys.stderr,
        flush=True,
    )


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
        pytest += ["--no-loadscope-reorder"]  # unit tests come last, to fill the gaps at the end
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
    modules = {
        "demo": ["rowsignal", "demo"],
        "bench": ["benchmarks"],
        "docs": ["development.site"],
        "release": ["development.release"],
    }
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
