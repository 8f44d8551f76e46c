"""What is shipped: every package of the source tree, and the SQL beside it."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    source = ROOT / "src"
    found = {
        ".".join(file.parent.relative_to(source).parts) for file in source.rglob("__init__.py")
    }
    assert set(settings["packages"]) == found | {"rowsignal.sql", "rowsignal.sql.migrations"}


def test_constraints_name_no_host() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert lines
    assert not [line for line in lines if "://" in line or line.startswith("-")]
