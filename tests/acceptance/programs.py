"""Programs that serve, run as their users run them: started, heard to be ready, ended by Ctrl-C."""

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ANSI = re.compile(r"\x1b\[[0-9;]*m")
GRACE = 20


@contextmanager
def serving(
    command: Sequence[str], ready: str, *, cwd: Path, environment: dict[str, str] | None = None
) -> Iterator[str]:
    """Run a program for the length of a block; yield the line that says that it is ready."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1", "PYTHONUNBUFFERED": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        said: list[str] = []
        try:
            yield _heard(process, ready, said)
            os.killpg(process.pid, signal.SIGINT)
            process.wait(GRACE)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert "Traceback" not in "".join(said), "".join(said)


def _heard(process: "subprocess.Popen[str]", ready: str, said: list[str]) -> str:
    """Return the line that matches; go on reading, so that the program is never held up."""
    assert process.stdout
    for line in iter(process.stdout.readline, ""):
        said.append(ANSI.sub("", line))
        if re.search(ready, said[-1]):
            threading.Thread(target=lambda: said.extend(process.stdout or ()), daemon=True).start()
            return said[-1]
    raise AssertionError("it ended before it was ready:\n" + "".join(said))
