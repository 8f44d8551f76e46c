"""The migrations tutorial, followed word for word in an empty folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "migrations.md"
BLOCK = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)
FILE = re.compile(r"`([\w.]+)`[\w ]*:$")

# done by the environment that the tests run in
PREPARED = ("python3 -m venv", "pip install", "export DATABASE_URL")


def run(commands: str, folder: Path, url: str) -> str:
    """Run shell commands as the page shows them; return what they print."""
    wanted = [line for line in commands.splitlines() if not line.startswith(PREPARED)]
    environment = {**os.environ, "DATABASE_URL": url}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    outcome = subprocess.run(
        ["bash", "-ec", "\n".join(wanted)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 0, f"{commands}\n{outcome.stdout}\n{outcome.stderr}"
    return outcome.stdout


def test_the_page_can_be_followed_word_for_word(tmp_path: Path, database_url: str):
    url = database_url.replace("+asyncpg", "")
    printed, ran = "", []
    for block in BLOCK.finditer(PAGE.read_text()):
        file = FILE.search(block["before"])
        if block["kind"] == "py":
            assert file, f"no file name before:\n{block['text']}"
            (tmp_path / file[1]).write_text(block["text"])
        elif block["kind"] == "sh":
            printed = run(block["text"], tmp_path, url)
            ran.append(block["text"])
        elif not block["text"].startswith("autogenerate_plugins"):
            assert printed == block["text"]
    assert any("wait.py" in commands for commands in ran)
    assert "install_v2" in (tmp_path / "upgrade.sql").read_text()
