"""The README as PyPI shows it: links within the project become addresses of the repository.

All else about the package is in pyproject.toml. The addresses are derived from its
`project.urls`, so that README.md itself can be read, and followed, in a checkout.
"""

import re
import tomllib
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")


def absolute(readme: str, repository: str, version: str) -> str:
    """Return the README with every link within the project led to this version of it."""

    def lead(found: re.Match[str]) -> str:
        target = found["target"]
        if "://" in target or target.startswith("#"):
            return found[0]
        kind = "raw" if found["image"] else "blob"
        return f"{found['image']}[{found['text']}]({repository}/{kind}/v{version}/{target})"

    return LINK.sub(lead, readme)


if __name__ == "__main__":
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    setup(
        long_description=absolute(
            (ROOT / "README.md").read_text(), project["urls"]["Repository"], project["version"]
        ),
        long_description_content_type="text/markdown",
    )
