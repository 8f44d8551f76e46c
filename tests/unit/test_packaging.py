"""What is shipped: every package of the source tree, the SQL beside it, and texts for PyPI."""

import json
import re
import runpy
import tomllib
from email.message import Message
from pathlib import Path

import pytest
from development import release_checks

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CHANGELOG = "# Changes\n\n## Unreleased\n{}\n## 1.2.0 - 2026-11-30\n\nSomething.\n"


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


def test_the_readme_of_pypi_leads_to_files_of_this_version() -> None:
    absolute = runpy.run_path(str(ROOT / "setup.py"))["absolute"]
    repository = PROJECT["urls"]["Repository"]
    text = absolute((ROOT / "README.md").read_text(), repository, "1.2.0")
    assert release_checks.RELATIVE.findall(release_checks.without_code(text)) == []
    targets = re.findall(rf"\]\({re.escape(repository)}/(?:blob|raw)/v1\.2\.0/([^)]+)\)", text)
    assert "docs/images/dashboard.png" in targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(
    ("text", "absolute"),
    [
        ("[a](docs/x.md#y)", "[a](https://h/r/blob/v1/docs/x.md#y)"),
        ("![a](x.png)", "![a](https://h/r/raw/v1/x.png)"),
        ("[a](#here) [b](https://x/y)", "[a](#here) [b](https://x/y)"),
    ],
)
def test_links_are_made_absolute(text: str, absolute: str) -> None:
    assert runpy.run_path(str(ROOT / "setup.py"))["absolute"](text, "https://h/r", "1") == absolute


def test_every_extra_is_tried_by_the_release() -> None:
    source = (ROOT / "development" / "release.py").read_text()
    tried = re.search(r"^ENTRY_POINTS = \{(.*?)^\}", source, re.MULTILINE | re.DOTALL)
    assert tried
    names = set(re.findall(r'^ +"(\w*)":', tried[1], re.MULTILINE))
    assert names == {"", *PROJECT["optional-dependencies"]} - {"dev", "docs", "release"}


def test_packages_of_all_registries_have_one_version_and_one_address() -> None:
    assert release_checks.version_mismatches(PROJECT["version"]) == []
    for path in release_checks.PACKAGES.glob("*/package.json"):
        manifest = json.loads(path.read_text())
        assert manifest["homepage"] == PROJECT["urls"]["Homepage"]
        assert manifest["repository"] == {
            "type": "git",
            "url": f"git+{PROJECT['urls']['Repository']}.git",
            "directory": path.parent.relative_to(ROOT).as_posix(),
        }


def test_a_package_of_another_version_is_found(tmp_path: Path) -> None:
    (tmp_path / "client").mkdir()
    (tmp_path / "client" / "package.json").write_text('{"name": "x", "version": "1.1.0"}')
    assert release_checks.version_mismatches("1.2.0", tmp_path) == [
        "x has version 1.1.0, not 1.2.0."
    ]


@pytest.mark.parametrize(
    ("version", "unreleased", "tags", "expected"),
    [
        ("1.2.0", "", {"v1.2.0": "head"}, []),
        ("1.2.0", "", {}, ["no tag v1.2.0"]),
        ("1.2.0", "", {"v1.2.0": "older"}, ["at another commit"]),
        ("1.2.0", "\n- A change.\n", {"v1.2.0": "head"}, ["under Unreleased"]),
        ("1.3.0", "", {"v1.3.0": "head"}, ["no section '## 1.3.0"]),
        ("1x2.0", "", {}, ["no section", "no tag"]),
    ],
)
def test_what_a_release_still_needs_is_told(
    version: str, unreleased: str, tags: dict[str, str], expected: list[str]
) -> None:
    changelog = CHANGELOG.format(unreleased)
    found = release_checks.unreadiness(version, changelog, tags, "head")
    assert len(found) == len(expected)
    for sentence, part in zip(found, expected, strict=True):
        assert part in sentence


def test_what_an_sdist_lacks_or_has_too_much_is_found() -> None:
    names = [f"rowsignal-1.2.0/{name}" for name in release_checks.IN_SDIST]
    assert release_checks.sdist_faults(names) == []
    assert release_checks.sdist_faults(names[1:]) == ["The sdist lacks CHANGELOG.md."]
    waste = "rowsignal-1.2.0/clients/js/node_modules/x/index.js"
    assert len(release_checks.sdist_faults([*names, waste])) == 1


def test_files_that_the_release_looks_for_are_there() -> None:
    assert [it for it in release_checks.IN_SDIST if not (ROOT / it).is_file()] == []


def test_what_is_wrong_with_a_wheel_is_found() -> None:
    metadata = Message()
    metadata["Project-URL"] = "Homepage, https://example"
    metadata.set_payload("[a](https://x/y)\n```python\nx[0](y)\n```\n")
    names = ["rowsignal/__init__.py", "rowsignal/sql/waiting.sql"]
    assert release_checks.wheel_faults(names, metadata) == []
    assert len(release_checks.wheel_faults([*names, "tests/conftest.py"], metadata)) == 1
    metadata.set_payload("[a](docs/x.md)")
    assert len(release_checks.wheel_faults(names, metadata)) == 1
    assert len(release_checks.wheel_faults([], Message())) == 2
