"""One style of SQL: keywords in lower case, parameters and fragments written in the files."""

import re
from pathlib import Path

import pytest

import rowsignal
from rowsignal.postgres.statements import query

ROOT = Path(__file__).parents[2]
FROZEN = ("0001_", "0002_", "0003_")  # migrations that were released
FILES = [file for file in sorted((ROOT / "sql").rglob("*.sql")) if not file.name.startswith(FROZEN)]

NO_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"[^\"]*\"", re.DOTALL)
CAPITALS = re.compile(
    r"\b(?!TG_|(?:NEW|OLD|SQLERRM)\b)[A-Z][A-Z_]+\b"
)  # not the variables of triggers


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_keywords_are_in_lower_case(file: Path) -> None:
    assert sorted(set(CAPITALS.findall(NO_CODE.sub("", file.read_text())))) == []


def test_a_fragment_stands_where_its_place_is() -> None:
    whole = query("log_look", of_tables=None)
    narrowed = query("log_look", of_tables="log_look_of_tables")
    assert "{" not in whole + narrowed
    assert query("log_look_of_tables") in narrowed
    assert query("log_look_of_tables") not in whole


def test_a_fragment_that_is_not_given_is_missed() -> None:
    with pytest.raises(KeyError, match="of_tables"):
        query("log_look")


def test_parameters_are_not_numbered_by_replacing_them() -> None:
    source = Path(rowsignal.__file__).parent
    found = [it for it in source.rglob("*.py") if re.search(r"replace\(.\$\d", it.read_text())]
    assert found == []
