"""Programs written for another library, with the imports that its migration guide says."""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
GUIDES = ROOT / "docs" / "migrating"
IMPORT = re.compile(r"`from ([\w.]+) import ([\w, ]+)`")

Names = dict[tuple[str, str], tuple[str, str]]


class MissingFromGuideError(LookupError):
    """A program imports what the guide does not mention."""


def names_in(guide: str) -> Names:
    """Return what the table of a guide says: old module and name to new module and name."""
    found: Names = {}
    for line in (GUIDES / guide).read_text().splitlines():
        imports = [(module, names.split(", ")) for module, names in IMPORT.findall(line)]
        if not line.startswith("| ") or len(imports) < 2:
            continue
        news = [(module, name) for module, names in imports[1:] for name in names]
        for old, new in zip(imports[0][1], news, strict=True):
            found[imports[0][0], old] = new
    return found


def port(source: str, guide: str, package: str) -> str:
    """Return a program with its imports from `package` as a guide says, otherwise unchanged."""
    names, lines = names_in(guide), source.splitlines()
    statements = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.ImportFrom)]
    for one in sorted(statements, key=lambda one: -one.lineno):
        if one.module and one.module.split(".")[0] == package:
            indent = " " * one.col_offset
            changed = [indent + line for line in _changed(one, names)]
            lines[one.lineno - 1 : one.end_lineno] = changed
    return "\n".join(lines) + "\n"


def _changed(statement: ast.ImportFrom, names: Names) -> list[str]:
    lines = []
    for alias in statement.names:
        key = (statement.module or "", alias.name)
        if key not in names:
            raise MissingFromGuideError(f"the guide does not say what becomes of {key}")
        module, name = names[key]
        shown = alias.asname or alias.name
        lines.append(f"from {module} import {name}" + (f" as {shown}" if shown != name else ""))
    return lines


def load(path: Path, guide: str, package: str) -> ModuleType:
    """Run a ported program as a module."""
    module = ModuleType(path.stem)
    sys.modules[path.stem] = module  # where FastAPI and SQLAlchemy look annotations up
    code = compile(port(path.read_text(), guide, package), str(path), "exec")
    exec(code, vars(module))
    return module
