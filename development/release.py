"""Build what is published, and check it as its users meet it.

usage: python3 dev.py release --dry-run [--extra NAME ...] [--no-npm]

Builds the sdist, and the wheel from it; checks both and the page that PyPI makes of the README;
installs the wheel alone into an environment for each extra, and runs the README's example there;
packs the npm packages; tells what the changelog and the tags still need. Nothing is uploaded:
without --dry-run it prints the commands that do so, where nothing is left to do.
"""

import argparse
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from tempfile import TemporaryDirectory

from development import release_checks
from development.project import ROOT, settings
from rowsignal.embedded import postgres_url

CLIENTS = ROOT / "clients" / "js"
DIST = ROOT / "dist"
PIP = ("-m", "pip", "install", "-q", "--disable-pip-version-check", "-c", ROOT / "constraints.txt")
# What an extra is for: imported where the extra alone is installed.
ENTRY_POINTS = {
    "": "rowsignal",
    "alembic": "alembic.autogenerate",
    "all": "rowsignal.service.app",
    "cli": "rowsignal.cli.app",
    "embedded": "rowsignal.embedded",
    "fastapi": "rowsignal.orm",
    "metrics": "rowsignal.metrics",
    "nats": "rowsignal.relay",
    "psycopg": "psycopg",
    "pytest": "rowsignal.pytest_plugin",
    "service": "rowsignal.service.app",
    "sse": "rowsignal.sse",
    "tracing": "rowsignal.tracing",
}
PUBLISH = """\
Everything holds. Publish with:

  git push origin v{version}
  twine upload dist/*
  npm publish --workspaces --prefix clients/js
  python3 dev.py docs --publish FOLDER"""


def run(*command: object, cwd: Path = ROOT) -> str:
    """Run a command and return its output; raise with all of it where it fails."""
    parts = [str(part) for part in command]
    outcome = subprocess.run(parts, cwd=cwd, text=True, capture_output=True, check=False)
    if outcome.returncode:
        sys.stderr.write(outcome.stdout + outcome.stderr)
        raise subprocess.CalledProcessError(outcome.returncode, parts)
    return outcome.stdout


def environment(folder: Path, *requirements: str) -> Path:
    """Make an environment that holds these requirements alone; return its Python."""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, *PIP, *requirements, cwd=folder)
    return python


def build(work: Path) -> None:
    """Build the sdist, and the wheel from what the sdist holds; check how PyPI takes them."""
    tools = settings()["optional-dependencies"]["release"]
    python = environment(work / "tools", *tools)
    shutil.rmtree(DIST, ignore_errors=True)
    run(python, "-m", "build", "--outdir", DIST, ROOT)
    run(python, "-m", "twine", "check", "--strict", *DIST.iterdir())


def example() -> str:
    """Return the README's first program."""
    found = re.search(
        r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
    )
    if found is None:
        raise LookupError("README.md has no python block")
    return found[1]


def try_extra(work: Path, extra: str, url: str) -> None:
    """Install the wheel with one extra; import what the extra is for, run the example."""
    wheel = next(DIST.glob("*.whl"))
    name = f"{wheel}[{extra}]" if extra else str(wheel)
    folder = work / (extra or "bare")
    python = environment(folder, name)
    run(python, "-W", "error", "-c", f"import {ENTRY_POINTS[extra]}", cwd=folder)
    program = folder / "example.py"
    program.write_text(example())
    printed = run("env", f"DATABASE_URL={url}", python, program, cwd=folder)
    if printed != "paid\n":
        raise AssertionError(f"with the extra {extra!r} the README's example prints {printed!r}")
    shutil.rmtree(folder)


def pack_clients() -> list[str]:
    """Build and pack the npm packages; return what they lack."""
    if not shutil.which("npm"):
        return ["npm is not installed: the JavaScript packages were not packed."]
    shutil.rmtree(CLIENTS / "dist", ignore_errors=True)
    (CLIENTS / "dist").mkdir()
    run("npm", "ci", "--no-audit", "--no-fund", cwd=CLIENTS)
    run("npm", "run", "--silent", "pack", cwd=CLIENTS)
    return release_checks.npm_faults(CLIENTS / "dist")


def unreadiness(version: str) -> list[str]:
    """Return what the repository still needs before this version can be published."""
    lines = run("git", "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/tags")
    tags = dict(line.split() for line in lines.splitlines())
    changes = run("git", "status", "--porcelain")
    return [
        *(["The work tree has changes that are not committed."] if changes else []),
        *release_checks.unreadiness(
            version, (ROOT / "CHANGELOG.md").read_text(), tags, run("git", "rev-parse", "HEAD")
        ),
    ]


def check(extras: list[str], has_npm: bool) -> list[str]:
    """Build and try everything; return the faults of what would be published."""
    faults = release_checks.version_mismatches(settings()["version"])
    with TemporaryDirectory() as temporary, postgres_url() as url:
        work = Path(temporary)
        print("building the sdist and, from it, the wheel ...", flush=True)
        build(work)
        faults += release_checks.archive_faults(DIST)
        for extra in extras:
            print(f"installing rowsignal[{extra}], running the example ...", flush=True)
            try_extra(work, extra, url)
    if has_npm:
        print("packing the npm packages ...", flush=True)
        faults += pack_clients()
    return faults


def main(arguments: list[str]) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python3 dev.py release", usage=__doc__)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--extra", action="append", choices=sorted(ENTRY_POINTS))
    parser.add_argument("--no-npm", action="store_true")
    options = parser.parse_args(arguments)
    try:
        faults = check(options.extra or sorted(ENTRY_POINTS), not options.no_npm)
        waiting = unreadiness(settings()["version"])
    except (subprocess.CalledProcessError, AssertionError) as error:
        print(f"release: {error}", file=sys.stderr)
        return 1
    for sentence in faults:
        print(f"fault: {sentence}", file=sys.stderr)
    for sentence in waiting:
        print(f"before publishing: {sentence}")
    if not faults and not waiting and not options.dry_run:
        print(PUBLISH.format(version=settings()["version"]))
    return 1 if faults or (waiting and not options.dry_run) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
