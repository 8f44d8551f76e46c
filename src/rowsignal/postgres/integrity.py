"""Check of schema `rowsignal`: its functions and rights against the library's scripts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import md5

from sqlalchemy import Connection, text

from rowsignal.postgres.statements import query, read

FUNCTION = re.compile(
    r"^create or replace function rowsignal\.(\w+)\((.*?)\$rowsignal\$(.*?)\$rowsignal\$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class Definition:
    """The definition of a function: its text, and whether it runs with its owner's rights."""

    digest: str
    is_definer: bool
    is_pinned: bool


@cache
def definitions(files: tuple[str, ...]) -> Mapping[str, Definition]:
    """Return the functions that scripts define, by name.

    >>> definitions(("values.sql",))["value_v1"].is_pinned
    False
    """
    return {
        name: Definition(
            # PostgreSQL computes the same of pg_proc.prosrc, so that no text need be sent.
            md5(body.encode(), usedforsecurity=False).hexdigest(),
            "security definer" in head,
            "search_path" in head,
        )
        for file in files
        for name, head, body in FUNCTION.findall(read(file))
    }


def open_functions() -> list[str]:
    """Return the names of the functions that every role may execute.

    >>> "capture_hint_v2" in open_functions()
    True
    """
    return re.findall(r"'rowsignal\.(\w+)\(", query("functions for everybody"))


def problems(connection: Connection, files: tuple[str, ...]) -> list[str]:
    """Return a sentence for each function and right that differs from the scripts."""
    expected = definitions(files)
    rows = connection.execute(text(query("schema_functions"))).mappings()
    found = {
        row["name"]: Definition(row["digest"], row["is_definer"], row["is_pinned"]) for row in rows
    }
    missing = [f"Function rowsignal.{name} is missing." for name in expected if name not in found]
    altered = [
        f"Function rowsignal.{name} was changed by hand."
        for name, definition in expected.items()
        if found.get(name, definition) != definition
    ]
    rights = connection.scalars(text(query("schema_rights")), {"open": open_functions()}).all()
    return [*missing, *altered, *rights]
