"""What has to hold before a version is published: texts, versions, tags and contents."""

import json
import re
import tarfile
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

from development.project import ROOT, sections

PACKAGES = ROOT / "clients" / "js" / "packages"
RELATIVE = re.compile(r"\]\((?!https?://|#|mailto:)(?P<target>[^)\s]+)\)")
# One file of each part that a build, a test run or a package made from the archive needs.
IN_SDIST = (
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "constraints.txt",
    "dev.py",
    "docs/README.md",
    "examples/worker.py",
    "benchmarks/__main__.py",
    "clients/js/package-lock.json",
    "clients/js/packages/client/src/index.ts",
    "sql/migrations/0001_hints.down.sql",
    "src/rowsignal/py.typed",
    "tests/conftest.py",
)
NOT_IN_WHEEL = re.compile(r"^(tests|docs|development|clients|benchmarks|setup\.py)\b")
IN_NPM = ("package/package.json", "package/README.md", "package/LICENSE", "package/dist/index.js")


def unreadiness(version: str, changelog: str, tags: dict[str, str], head: str) -> list[str]:
    """Return what stands between this commit and a release of the version, in sentences."""
    found, titles = [], sections(changelog)
    dated = [title for title in titles if re.fullmatch(rf"{re.escape(version)} - [\d-]+", title)]
    if not dated:
        found.append(f"CHANGELOG.md has no section '## {version} - DATE'.")
    if titles.get("Unreleased", "").strip():
        found.append("CHANGELOG.md has changes under Unreleased: they need a version and a date.")
    tagged = tags.get(f"v{version}")
    if tagged is None:
        found.append(f"This commit has no tag v{version}.")
    elif tagged != head:
        found.append(f"Tag v{version} is at another commit: raise the version in pyproject.toml.")
    return found


def version_mismatches(version: str, folder: Path = PACKAGES) -> list[str]:
    """Return the npm packages whose version is not that of the Python package."""
    manifests = {path: json.loads(path.read_text()) for path in folder.glob("*/package.json")}
    return [
        f"{manifest['name']} has version {manifest['version']}, not {version}."
        for manifest in manifests.values()
        if manifest["version"] != version
    ]


def sdist_faults(names: list[str]) -> list[str]:
    """Return what is missing in a source distribution, or should not be there."""
    inner = {name.partition("/")[2] for name in names}
    missing = [f"The sdist lacks {name}." for name in IN_SDIST if name not in inner]
    waste = [name for name in inner if "node_modules/" in name or "__pycache__" in name]
    return missing + [f"The sdist holds {name}." for name in sorted(waste)[:5]]


def wheel_faults(names: list[str], metadata: Message) -> list[str]:
    """Return what is wrong with a wheel's files, and with the page that PyPI makes of it."""
    text = str(metadata.get_payload())
    relative = [found["target"] for found in RELATIVE.finditer(without_code(text))]
    return [
        *(f"The wheel holds {name}." for name in names if NOT_IN_WHEEL.match(name)),
        *(f"The README of the wheel has the relative link {target}." for target in relative),
        *([] if metadata.get_all("Project-URL") else ["The wheel names no address."]),
        *([] if "rowsignal/sql/" in "".join(names) else ["The wheel has no SQL."]),
    ]


def without_code(text: str) -> str:
    """Return Markdown without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def archive_faults(folder: Path) -> list[str]:
    """Return what is wrong with the archives that were built into a folder."""
    with tarfile.open(next(folder.glob("*.tar.gz"))) as sdist:
        found = sdist_faults(sdist.getnames())
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        name = next(it for it in wheel.namelist() if it.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(wheel.read(name).decode())
        found += wheel_faults(wheel.namelist(), metadata)
    return found


def npm_faults(folder: Path) -> list[str]:
    """Return what the packed npm packages lack."""
    found = []
    for path in sorted(folder.glob("*.tgz")):
        with tarfile.open(path) as packed:
            names = packed.getnames()
        found += [f"{path.name} lacks {name}." for name in IN_NPM if name not in names]
    return found
