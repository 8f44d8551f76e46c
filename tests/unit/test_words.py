"""Words that the project writes in one way."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = {".py", ".sql", ".md", ".ts", ".tsx", ".js", ".html", ".toml", ".yml"}
# Released migrations never change, and the first version's changes are told as they were.
OLD = re.compile(r"sql/migrations/000[123]_|CHANGELOG\.md|tests/unit/test_words\.py")


def test_cannot_is_one_word() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = [
        f"{name}:{number}"
        for name in listed.stdout.splitlines()
        if Path(name).suffix in TEXT and not OLD.match(name) and (ROOT / name).is_file()
        for number, line in enumerate((ROOT / name).read_text().splitlines(), 1)
        if re.search(r"\bcan not\b", line, re.IGNORECASE)
    ]
    assert found == []
