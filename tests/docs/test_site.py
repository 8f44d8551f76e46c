"""The site of the documentation: its pages, its navigation, its versions."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from development import docstrings, site, site_pages

import rowsignal
from support.doc_pages import ROOT, name_of, pages

API = (ROOT / "docs" / site_pages.API).read_text()


def paths(navigation: Any) -> list[str]:
    """Every page that a navigation leads to."""
    if isinstance(navigation, str):
        return [navigation]
    entries = navigation if isinstance(navigation, list) else navigation.values()
    return [path for entry in entries for path in paths(entry)]


@pytest.fixture
def staged(tmp_path: Path) -> tuple[Path, site_pages.Navigation]:
    folder = tmp_path / "docs"
    return folder, site_pages.stage(folder)


def test_the_navigation_has_every_page_once(staged: tuple[Path, site_pages.Navigation]) -> None:
    folder, navigation = staged
    found = paths(navigation)
    assert len(found) == len(set(found))
    assert set(found) == {page.relative_to(folder).as_posix() for page in folder.rglob("*.md")}


def test_pages_are_those_of_the_repository(staged: tuple[Path, site_pages.Navigation]) -> None:
    folder, _ = staged
    docs = ROOT / "docs"
    for page in docs.rglob("*.md"):
        name = page.relative_to(docs)
        if name.as_posix() != site_pages.API:
            assert (folder / name).read_text() == page.read_text()


def test_only_pages_that_differ_are_written_again(tmp_path: Path) -> None:
    files = {Path("a.md"): b"a", Path("b/c.md"): b"c", Path("b/d.md"): b"d"}
    site_pages.synchronise(tmp_path, files)
    before = (tmp_path / "a.md").stat().st_mtime_ns
    changed = {Path("a.md"): b"a", Path("b/c.md"): b"changed"}
    site_pages.synchronise(tmp_path, changed)
    assert (tmp_path / "a.md").stat().st_mtime_ns == before
    found = {it.relative_to(tmp_path): it.read_bytes() for it in tmp_path.rglob("*.md")}
    assert found == changed


def test_every_public_name_has_one_signature_and_a_link_to_it() -> None:
    text = "".join(text for _, text in site_pages.signature_pages(API).values())
    blocks = [line for line in text.splitlines() if line.startswith("::: ")]
    assert len(blocks) == len(set(blocks))
    assert {f"::: rowsignal.{name}" for name in rowsignal.__all__} <= set(blocks)
    assert "::: rowsignal.sse.create_sse_router" in blocks
    linked = site_pages.with_links(API)
    missing = [it for it in rowsignal.__all__ if f"[`{it}`][rowsignal.{it}]" not in linked]
    assert missing == []


def test_pages_hold_no_syntax_of_the_generator() -> None:
    marks = (":::", "!!!", "???", "===", "--8<--")
    odd = [
        f"{name_of(page)}: {line}"
        for page in pages()
        for line in page.read_text().splitlines()
        if line.startswith(marks) or "{:" in line
    ]
    assert odd == []


def test_groups_of_a_section_become_groups_of_the_navigation() -> None:
    index = "# X\n\n## How\n\nFirst things:\n\n- [A](a.md), and more\n\nOthers:\n\n- [B](b/c.md)\n"
    assert site_pages.navigation(index)[1:] == [
        {"How": [{"First things": [{"A": "a.md"}]}, {"Others": [{"B": "b/c.md"}]}]}
    ]


@pytest.mark.parametrize("has_versions", [True, False])
def test_settings_survive_their_writing(has_versions: bool) -> None:
    pages: site_pages.Navigation = [{'a "b"': [{"ü\\": "x.md"}]}, {"c": "d.md"}]
    config = site.configuration(pages, has_versions=has_versions)
    text = "".join(f"{key} = {site.toml(value)}\n" for key, value in config.items())
    assert tomllib.loads(text) == config
    assert ("version" in config["project"]["extra"]) is has_versions


def test_examples_of_docstrings_are_fenced() -> None:
    text = "Do it.\n\n>>> [name for name in it]\n['a']\n\nAnd more.\n"
    assert docstrings.with_fences(text) == (
        "Do it.\n\n```pycon\n>>> [name for name in it]\n['a']\n```\n\nAnd more.\n"
    )


@pytest.mark.parametrize(
    ("tag", "is_request"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ("<link rel=stylesheet href=//fonts.example/x.css>", True),
        ('<img alt="" src="http://example/x.png">', True),
        ('<link rel="canonical" href="https://example/">', False),
        ('<a href="https://example/">there</a>', False),
        ('<script src="assets/x.js"></script>', False),
    ],
)
def test_requests_to_other_hosts_are_found(tmp_path: Path, tag: str, is_request: bool) -> None:
    (tmp_path / "index.html").write_text(f"<!doctype html>{tag}")
    assert bool(site.requests_to_others(tmp_path)) is is_request


def test_versions_are_listed_with_the_newest_first(tmp_path: Path) -> None:
    built, folder = tmp_path / "site", tmp_path / "versions"
    built.mkdir()
    for version in ("0.9.0", "0.10.0", "0.2.0", "0.10.0"):
        (built / "index.html").write_text(version)
        site.publish(built, folder, version)
    listed = json.loads((folder / "versions.json").read_text())
    assert [it["version"] for it in listed] == ["0.10.0", "0.9.0", "0.2.0"]
    assert [it["aliases"] for it in listed] == [["latest"], [], []]
    assert (folder / "0.9.0" / "index.html").read_text() == "0.9.0"
    assert "0.10.0/" in (folder / "index.html").read_text()
