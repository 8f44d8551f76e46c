"""The first command of a newcomer says how far it is."""

import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    names = runpy.run_path(str(ROOT / "dev.py"))
    packages = tmp_path / "lib" / "python3.x" / "site-packages"
    packages.mkdir(parents=True)
    (packages / "a-1.dist-info").mkdir()
    for name, value in {"VENV": tmp_path, "ROOT": tmp_path, "REPORT": 0.05}.items():
        monkeypatch.setitem(names["install"].__globals__, name, value)
    return names


def test_progress_counts_what_the_installer_has_done(dev: dict[str, Any], tmp_path: Path) -> None:
    log = tmp_path / "install.log"
    log.write_text("Collecting a\n  Downloading a.whl\nCollecting b>=1 (from a)\n")
    assert dev["progress"](log) == "2 packages fetched, 1 installed"


def test_an_installation_ends_with_its_duration(
    dev: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    dev["install"](sys.executable, "-c", "print('noise')")
    written = capsys.readouterr().err
    assert written.splitlines()[-1].startswith("preparing .venv: done in ")
    assert "noise" not in written


def test_an_installation_that_fails_shows_what_the_installer_said(
    dev: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        dev["install"](sys.executable, "-c", "print('no such package'); raise SystemExit(2)")
    assert "no such package" in capsys.readouterr().err


def test_an_unknown_command_shows_the_usage() -> None:
    outcome = subprocess.run(
        [sys.executable, str(ROOT / "dev.py"), "nonsense"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == 2
    for command in ("demo", "test", "lint", "bench", "docs", "release"):
        assert f"  {command} " in outcome.stderr
