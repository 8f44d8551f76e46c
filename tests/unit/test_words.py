"""Words that the project writes in one way."""

import ast
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "rowsignal"
TEXT = {".py", ".sql", ".md", ".ts", ".tsx", ".js", ".html", ".toml", ".yml"}
# Released migrations never change, and the first version's changes are told as they were.
OLD = re.compile(r"sql/migrations/000[123]_|CHANGELOG\.md|tests/unit/test_words\.py")
# A connection, a reader and a task have nouns of their own.
PERSON = re.compile(r"\b(who|whom|whoever|nobody|somebody|anybody|everybody)\b", re.IGNORECASE)
# Questions that a first line leaves to the reader: "What is kept" is "The kept rows".
ASKS = re.compile(r"(What|Where|Whether|How|Why|Which)\b")


@cache
def sources() -> Mapping[str, ast.Module]:
    """Return the modules of the package by file, parsed once."""
    paths = sorted(SOURCES.rglob("*.py"))
    return {path.relative_to(SOURCES).as_posix(): ast.parse(path.read_text()) for path in paths}


def docstrings(*, public: bool = False) -> Iterator[tuple[str, str, str]]:
    """Return file, name and text of the docstrings in the package."""
    for name, tree in sources().items():
        for place, text in _docstrings_in(tree, ""):
            if not public or not re.search(r"(^|\.)_(?!_)", place):
                yield name, place, text


def _docstrings_in(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    if isinstance(node, kinds) and (text := ast.get_docstring(node)):
        yield place or "the module", text
    for child in ast.iter_child_nodes(node):
        name = getattr(child, "name", "") if isinstance(child, kinds) else ""
        inner = f"{place}.{name}" if place and name else place or name
        yield from _docstrings_in(child, inner)


def test_cannot_is_one_word() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        f"{name}:{number}"
        for name in listed.stdout.splitlines()
        if Path(name).suffix in TEXT and not OLD.match(name) and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if re.search(r"\bcan not\b", line, re.IGNORECASE)
    ]
    assert found == []


def test_docstrings_name_their_subject_by_a_noun() -> None:
    found = [
        f"{file}, {place}: {line}"
        for file, place, text in docstrings()
        for line in text.splitlines()
        if PERSON.search(line)
    ]
    assert found == []


def test_docstrings_begin_with_their_subject_or_a_verb() -> None:
    found = [f"{file}, {place}: {text}" for file, place, text in docstrings() if ASKS.match(text)]
    assert found == []


def test_the_check_finds_such_a_word() -> None:
    tree = ast.parse('class A:\n    def f(self):\n        """Wake whoever waits."""\n')
    ((place, text),) = _docstrings_in(tree, "")
    assert place == "A.f"
    assert PERSON.search(text)


def test_log_lines_name_their_subject_by_a_noun() -> None:
    found = [
        f"{name}:{node.lineno}"
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).startswith("logger.")
        and any(PERSON.search(ast.unparse(argument)) for argument in node.args)
    ]
    assert found == []


def test_public_docstrings_can_be_read(
    request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each begins with a sentence; `--list-docstrings` prints them all, for reading."""
    listed = list(docstrings(public=True))
    if request.config.getoption("--list-docstrings"):
        with capsys.disabled():
            print("\n".join(f"{file}, {place}: {text}" for file, place, text in listed))
    assert len(listed) > 1000
    assert [it[:2] for it in listed if not re.search(r"[.:!?]\s*$", it[2].splitlines()[0])] == []
