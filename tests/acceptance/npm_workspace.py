"""The npm workspace of the JavaScript packages: installed and built once, whatever asks first."""

from pathlib import Path

import pytest

from acceptance.npm_tools import LOCK, WORKSPACE, found_node, once, only_one, sources


@pytest.fixture(scope="session")
def npm_workspace() -> Path:
    """Folder of the workspace, with what it needs installed, its packages built and packed."""
    found_node()
    with only_one():
        once("install", [LOCK], "npm", "ci")
        once("build", sources(), "npm", "run", "--silent", "pack")
    return WORKSPACE
