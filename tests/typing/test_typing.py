"""Two type checkers agree with what the samples beside this file say of the public names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in Path(__file__).parent.glob("*.py")
    if not path.name.startswith("test_")
)


def check(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a checker in the project's folder."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.mark.timeout(120)  # without its cache mypy reads all of SQLAlchemy
def test_mypy_understands_the_samples():
    outcome = check("mypy", "--strict", *SAMPLES)
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr


@pytest.mark.timeout(120)  # as above
def test_basedpyright_understands_the_samples():
    outcome = check("basedpyright", "--level", "error", "--outputjson", *SAMPLES)
    assert outcome.stdout, outcome.stderr
    report = json.loads(outcome.stdout)
    assert report["summary"]["filesAnalyzed"] == len(SAMPLES)
    assert [f"{it['file']}: {it['message']}" for it in report["generalDiagnostics"]] == []


def test_the_checkers_are_asked_about_what_a_sample_gets_wrong(tmp_path: Path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from rowsignal import wait_for_row_change\nwait_for_row_change(1, 2, 3)\n")
    assert "arg-type" in check("mypy", "--strict", str(wrong)).stdout
