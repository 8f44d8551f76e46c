"""The npm workspace of the JavaScript packages: installed and built once, whatever asks first."""

from pathlib import Path

import pytest

from acceptance.npm_tools import LOCK, WORKSPACE, found_node, once, only_one, sources


@pytest.fixture(scope="session")
def npm_workspace() -> Path:
    """Folder of the workspace, with what it needs installed and its packages built."""
    found_node()
    with only_one():
        once("install", [LOCK], "npm", "ci")
        once("build", sources(), "npm", "run", "--silent", "build")
    return WORKSPACE
