"""The SQL that runs inside PostgreSQL, read from the `.sql` files of the package `rowsignal.sql`.

Statements that Python sends have headings, comment lines `-- :: name`. Files without headings are
scripts: they define the objects of the schema, or are migrations.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

HEADING = re.compile(r"^-- (?:::|name:) (.+)$", re.MULTILINE)
PLACE = re.compile(r"^ +\{(\w+)\}$", re.MULTILINE)
# What a semicolon does not end: dollar-quoted bodies, strings, comments.
TOKEN = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'|--[^\n]*|;|[^;'$-]+|.", re.DOTALL)


@cache
def read(name: str) -> str:
    """Return the text of a file."""
    return files("rowsignal.sql").joinpath(name).read_text(encoding="utf-8")


@cache
def query(name: str, **fragments: str | None) -> str:
    """Return the statement under a heading; raise `KeyError` when no file has it.

    `fragments` names, for each {place} in the statement, the heading of what stands there, None
    for nothing: variants of a statement are written in the files, too.

    >>> query("captures").startswith("-- Tables asked for")
    True
    """
    sections = _sections()
    found = {place: sections[it] if it else "" for place, it in fragments.items()}
    return PLACE.sub(lambda match: found[match[1]], sections[name])


@cache
def _sections() -> dict[str, str]:
    found: dict[str, str] = {}
    for file in files("rowsignal.sql").iterdir():
        if file.name.endswith(".sql"):
            parts = HEADING.split(file.read_text(encoding="utf-8"))
            found |= {
                name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)
            }
    return found


def split(script: str) -> Iterator[str]:
    """Cut a script into its statements; comments between statements are left out."""
    parts: list[str] = []
    for match in TOKEN.finditer(script):
        piece = match[0]
        if piece == ";":
            yield "".join(parts).strip()
            parts.clear()
        elif not piece.startswith("--"):
            parts.append(piece)


@cache
def migrations() -> tuple[tuple[int, str], ...]:
    """Return (version, name) of every migration in order; 0001_hints is (1, "hints")."""
    names = (file.name for file in files("rowsignal.sql").joinpath("migrations").iterdir())
    stems = sorted(name.removesuffix(".up.sql") for name in names if name.endswith(".up.sql"))
    return tuple((int(stem[:4]), stem[5:]) for stem in stems)
