"""What the pages say holds: programs run, links lead somewhere, every public name is explained."""

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import rowsignal
from support.doc_pages import ROOT, Block, blocks, is_broken, links, name_of, pages, programs

# Where SQLModel is installed its session class is used, and that deprecates SQLAlchemy's methods.
WARNINGS = ("-W", "error", "-W", "ignore::DeprecationWarning:sqlalchemy.ext.asyncio.session")

RUN_ALONE = {"python"}
PARTS = {"py", "html", "css", "js", "ts", "sh", "sql", "text", "json", "nginx", "toml", "yaml"}
KINDS = RUN_ALONE | PARTS | {"jsx", "tsx"}

DOCS = [page for page in pages() if page.is_relative_to(ROOT / "docs")]
API = ROOT / "docs" / "reference" / "api.md"


@pytest.mark.parametrize("block", programs(), ids=str)
def test_a_program_on_a_page_runs(block: Block, tmp_path: Path, database_url: str):
    program = tmp_path / "program.py"
    program.write_text(block.text)
    outcome = subprocess.run(
        [sys.executable, *WARNINGS, program.name],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 0, f"{block}\n{outcome.stdout}\n{outcome.stderr}"


def test_blocks_are_of_a_kind_that_says_whether_they_run():
    unknown = [block for page in pages() for block in blocks(page) if block.kind not in KINDS]
    assert [str(block) for block in unknown] == []


@pytest.mark.parametrize("page", pages(), ids=name_of)
def test_links_lead_somewhere(page: Path):
    assert [target for target in links(page) if is_broken(page, target)] == []


def test_every_page_can_be_reached_from_the_index():
    index = ROOT / "docs" / "README.md"
    reached, coming = {index}, [index]
    while coming:
        page = coming.pop()
        for target in links(page):
            aim = (page.parent / target.partition("#")[0]).resolve()
            if aim.suffix == ".md" and aim not in reached:
                reached.add(aim)
                coming.append(aim)
    assert [name_of(page) for page in DOCS if page not in reached] == []


@pytest.mark.parametrize("name", rowsignal.__all__)
def test_a_public_name_says_what_it_is(name: str):
    documentation = inspect.getdoc(getattr(rowsignal, name))
    assert documentation, f"rowsignal.{name} has no docstring"
    first = documentation.splitlines()[0]
    assert re.match(r"[A-Z`].+\.$", first), f"rowsignal.{name}: {first!r} is no sentence"


def test_the_reference_lists_the_public_names_and_no_others():
    listed = re.findall(r"^\| `(\w+)` \|", API.read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(listed)), "a name is listed twice"
    assert set(listed) == set(rowsignal.__all__)


def test_every_public_name_is_in_an_example():
    code = "".join(block.text for page in pages() for block in blocks(page))
    assert [it for it in rowsignal.__all__ if not re.search(rf"\b{it}\b", code)] == []


def test_public_names_are_sorted_as_the_door_promises():
    assert rowsignal.__all__ == sorted(rowsignal.__all__)
    assert len(set(rowsignal.__all__)) == len(rowsignal.__all__)


@pytest.mark.parametrize(
    "module", ["alembic_plugin", "embedded", "metrics", "pytest_plugin", "service", "sse"]
)
def test_the_names_of_a_module_with_an_extra_are_on_some_page(module: str):
    text = "".join(page.read_text() for page in DOCS)
    names = getattr(importlib.import_module(f"rowsignal.{module}"), "__all__", [module])
    names = [name for name in names if not name.startswith("pytest_")]  # hooks, called by pytest
    assert [name for name in names if not re.search(rf"\b{name}\b", text)] == []


def modules_with_examples() -> list[str]:
    """Modules that hold interactive examples; found by their text, imported by their test."""
    found = pkgutil.walk_packages(rowsignal.__path__, "rowsignal.")
    names = [module.name for module in found if not module.name.endswith("__main__")]
    folder = ROOT / "src"
    files = {name: folder.joinpath(*name.split(".")) for name in names}
    return [
        name
        for name, path in files.items()
        for file in (path.with_suffix(".py"), path / "__init__.py")
        if file.exists() and ">>> " in file.read_text()
    ]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_in_docstrings_give_what_they_show(name: str):
    module: ModuleType = importlib.import_module(name)
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
