r"""The SQL that runs inside PostgreSQL, read from the `.sql` files of the package `rowsignal.sql`.

Statements that Python sends stand under headings, comment lines `-- :: name`. `\ir file` includes
another file, as it does in psql, so that a migration can be run by `psql -f`, too.
"""

import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

HEADING = re.compile(r"^-- (?:::|name:) (.+)$", re.MULTILINE)
INCLUDE = re.compile(r"^\\ir \.\./(\S+)$", re.MULTILINE)
# What a semicolon does not end: dollar-quoted bodies, strings, comments.
TOKEN = re.compile(r"\$(\w*)\$.*?\$\1\$|'(?:[^']|'')*'|--[^\n]*|;|[^;'$-]+|.", re.DOTALL)


@cache
def read(name: str) -> str:
    r"""Return the text of a file, `\ir` lines replaced by the files they name."""
    text = files("rowsignal.sql").joinpath(name).read_text(encoding="utf-8")
    return INCLUDE.sub(lambda match: read(match[1]), text)


@cache
def query(name: str) -> str:
    """Return the statement under a heading; raise `KeyError` when no file has it.

    >>> query("captures").startswith("-- Tables asked for")
    True
    """
    return _sections()[name]


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


@cache
def function_body(name: str) -> str:
    """Return the text between the dollar quotes of a trigger function, as in pg_proc.prosrc."""
    text = read("hint_capture.sql") + read("log_capture.sql")
    pattern = rf"FUNCTION rowsignal\.{name}\(.*?\$rowsignal\$(.*?)\$rowsignal\$"
    match = re.search(pattern, text, re.DOTALL)
    if match is None:
        raise KeyError(name)
    return match[1]
