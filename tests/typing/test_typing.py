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


WRONG = """\
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import (
    install_on_create, install_script, install_triggers, trigger_status, uninstall_triggers,
    wait_for_row_change, watched, Base, Hooks, ListenerState, TableAction,
)

def use(engine: Engine, state: ListenerState, action: TableAction) -> None:
    install_triggers(engine, Base, logged=True)  # wrong
    install_triggers(engine, Base, log="yes")  # wrong
    install_triggers(engine, Base, columns=[1])  # wrong
    install_triggers(engine, Base, lock_timeout="3s")  # wrong
    uninstall_triggers(engine, Base, log=True)  # wrong
    trigger_status(engine, Base, exclude=5)  # wrong
    install_script(Base, row_value=True)  # wrong
    install_on_create(Base.metadata, notify=0.5)  # wrong
    watched(colums=["status"])  # wrong
    watched(always=None)  # wrong
    if state.mode == "asleep":  # wrong
        pass
    if action.action == "skipped":  # wrong
        pass

async def use_async(engine: AsyncEngine) -> None:
    await install_triggers(engine, Base, logged=True)  # wrong
    await wait_for_row_change(1, 2, 3)  # wrong
"""


def lines_marked_wrong() -> set[int]:
    """Return the numbers of the lines that a checker must refuse."""
    return {at for at, line in enumerate(WRONG.splitlines(), 1) if line.endswith("# wrong")}


@pytest.mark.timeout(120)  # as above
def test_mypy_refuses_wrong_options_and_no_others(tmp_path: Path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    found = check("mypy", "--strict", "--output", "json", str(wrong)).stdout.splitlines()
    problems = [json.loads(line) for line in found if line.startswith("{")]
    assert {it["line"] for it in problems if it["severity"] == "error"} == lines_marked_wrong()


@pytest.mark.timeout(120)  # as above
def test_basedpyright_refuses_wrong_options_and_no_others(tmp_path: Path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(WRONG)
    settings = {
        "extraPaths": [str(ROOT / "src")],
        "typeCheckingMode": "standard",
        "reportUnnecessaryComparison": "error",
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = ("basedpyright", "--outputjson", "--project", str(tmp_path), "--level", "error")
    report = json.loads(check(*command, "--pythonpath", sys.executable).stdout)
    lines = {it["range"]["start"]["line"] + 1 for it in report["generalDiagnostics"]}
    assert lines == lines_marked_wrong()
