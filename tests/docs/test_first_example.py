"""The example that README.md begins with, as a newcomer runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.doc_pages import ROOT, Block, blocks

README, LANDING = ROOT / "README.md", ROOT / "docs" / "README.md"


def first_program(page: Path) -> Block:
    """The first program of a page."""
    return next(block for block in blocks(page) if block.kind == "python")


def run(folder: Path, **environment: str) -> str:
    """Run the example in an empty folder; return what it prints."""
    program = folder / "example.py"
    program.write_text(first_program(README).text)
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    outcome = subprocess.run(
        [sys.executable, str(program)],
        cwd=folder,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=80,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def test_it_runs_twice_on_the_same_database(tmp_path: Path, database_url: str) -> None:
    outputs = [run(tmp_path, DATABASE_URL=database_url) for _ in range(2)]
    assert outputs == ["paid\n", "paid\n"]


def test_it_takes_the_address_that_psql_takes(tmp_path: Path, database_url: str) -> None:
    plain = database_url.replace("+asyncpg", "")
    assert plain != database_url
    assert run(tmp_path, DATABASE_URL=plain) == "paid\n"


@pytest.mark.parametrize("environment", [{}, {"DATABASE_URL": ""}], ids=["unset", "empty"])
def test_it_runs_without_a_database(tmp_path: Path, environment: dict[str, str]) -> None:
    assert run(tmp_path, **environment) == "paid\n"


def test_the_landing_page_begins_with_the_same_example() -> None:
    assert first_program(LANDING).text == first_program(README).text
