"""The pages of the site: those of `docs`, and signatures and navigation made from them.

Pages in `docs` hold no syntax of the site's generator, so that they read well in the repository.
What only the site has is added to a copy of them.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from development.project import ROOT, sections

DOCS = ROOT / "docs"
SOURCE = ROOT / "build" / "site-source"
INDEX = "README.md"
API = "reference/api.md"
STYLES = "site.css"
SIGNATURES = "reference/api"

LISTED = re.compile(r"^\| `(?P<name>\w+)` \|", re.MULTILINE)
MODULE = re.compile(r"^\| `rowsignal\.(?P<name>\w+)` \|", re.MULTILINE)
ENTRY = re.compile(r"^- \[(?P<title>[^\]]+)\]\((?P<path>[^)]+\.md)\)")
GROUP = re.compile(r"^(?P<title>[A-Z][\w ]+):$")

Navigation = list[dict[str, Any]]


def slug(title: str) -> str:
    """Return a title as part of an address."""
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def navigation(index: str) -> Navigation:
    """Return the sections of the index that list pages, in its order and its words."""
    found: Navigation = [{"rowsignal": INDEX}]
    for title, text in sections(index).items():
        if entries := _entries(text):
            found.append({title: entries})
    return found


def _entries(text: str) -> Navigation:
    """Return a section's links; those under a line that ends with a colon are a group."""
    top: Navigation = []
    place = top
    for line in text.splitlines():
        if group := GROUP.match(line):
            place = []
            top.append({group["title"]: place})
        elif entry := ENTRY.match(line):
            place.append({entry["title"]: entry["path"]})
    return top


def signature_pages(api: str) -> dict[str, tuple[str, str]]:
    """Return title and text of a page of signatures for each section of the list of names."""
    pages = {}
    for title, text in sections(api).items():
        names = [f"rowsignal.{name}" for name in LISTED.findall(text)]
        names += [name for module in MODULE.findall(text) for name in names_of_module(module)]
        if names:
            blocks = "\n\n".join(f"::: {name}" for name in names)
            pages[f"{SIGNATURES}/{slug(title)}.md"] = (title, f"# {title}\n\n{blocks}\n")
    return pages


def names_of_module(name: str) -> list[str]:
    """Return the public names of a module that needs an extra, hooks of pytest left out."""
    module = importlib.import_module(f"rowsignal.{name}")
    public = [it for it in getattr(module, "__all__", []) if not it.startswith("pytest_")]
    return [f"rowsignal.{name}.{it}" for it in public]


def with_links(api: str) -> str:
    """Return the list of names, each of which leads to its signature."""
    return LISTED.sub(r"| [`\g<name>`][rowsignal.\g<name>] |", api)


def stage(destination: Path = SOURCE / "docs") -> Navigation:
    """Bring the pages of the site up to date in a folder; return its navigation."""
    api = (DOCS / API).read_text()
    signatures = signature_pages(api)
    files = {
        path.relative_to(DOCS): path.read_bytes() for path in DOCS.rglob("*") if path.is_file()
    }
    files[Path(STYLES)] = (ROOT / "development" / STYLES).read_bytes()
    files[Path(API)] = with_links(api).encode()
    files |= {Path(path): text.encode() for path, (_, text) in signatures.items()}
    synchronise(destination, files)
    found = navigation((DOCS / INDEX).read_text())
    reference = next(entry["Reference"] for entry in found if "Reference" in entry)
    reference.append({"Signatures": [{title: path} for path, (title, _) in signatures.items()]})
    return found


def synchronise(folder: Path, files: dict[Path, bytes]) -> None:
    """Let a folder hold these files and no others, and touch only those that differ.

    The generator watches the folder: it would miss pages that are gone for a moment.
    """
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if path.relative_to(folder) not in files:
            path.unlink()
    for name, content in files.items():
        path = folder / name
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
