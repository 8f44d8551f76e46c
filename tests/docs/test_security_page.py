"""Every test that the page on security names exists."""

import re

from support.doc_pages import ROOT

PAGE = ROOT / "docs" / "explanation" / "security.md"


def test_the_tests_that_the_page_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))
    files = ROOT.joinpath("tests").rglob("test_*.py")
    defined = {
        name
        for file in files
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", file.read_text(), re.MULTILINE)
    }
    assert len(named) > 15
    assert named - defined == set()
