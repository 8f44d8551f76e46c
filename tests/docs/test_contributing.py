"""The ways of a change that CONTRIBUTING tells lead through files and functions that exist."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "rowsignal"
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
WAYS = ["From a notification to a resolved wait", "From the log to a frame"]


def steps(heading: str) -> list[str]:
    """Return the numbered steps below a heading."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.split(r"^\d+\. ", section, flags=re.MULTILINE)[1:]


def names_of(file: Path) -> set[str]:
    """Return the functions, classes and methods that a file defines."""
    if file.suffix == ".sql":
        return set(re.findall(r"function rowsignal\.(\w+)", file.read_text()))
    found = set[str]()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        for inner in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(f"{node.name}.{inner.name}")
    return found


def files_of(step: str, folder: Path | None = None) -> Iterator[Path]:
    """Yield the files that a step names; one without a folder lies beside the first."""
    for name in re.findall(r"`([\w/]+\.(?:py|sql))`", step):
        places = [ROOT / name] if name.startswith("sql/") else [SOURCE / name]
        places += [folder / name] if folder else []
        file = next((it for it in places if it.is_file()), None)
        assert file is not None, f"{name} does not exist"
        folder = folder or file.parent
        yield file


@pytest.mark.parametrize("heading", WAYS)
def test_a_way_has_at_most_ten_steps_each_with_a_file_and_a_function(heading: str) -> None:
    assert 5 <= len(steps(heading)) <= 10
    for step in steps(heading):
        known = set().union(*map(names_of, files_of(step)))
        named = re.findall(r"`([A-Za-z_]\w*(?:\.\w+)?)`", re.sub(r"`[\w/]+\.(py|sql)`", "", step))
        functions = [name for name in named if name != "watch"]
        assert functions, step
        assert [name for name in functions if name not in known] == [], step
