"""What the project says about itself, read where it is written."""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^## (?P<title>.+)\n", re.MULTILINE)


def settings() -> dict[str, Any]:
    """Return the `project` table of `pyproject.toml`."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def sections(page: str) -> dict[str, str]:
    """Return the text under each heading of the second level, by heading."""
    parts = SECTION.split(page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))
