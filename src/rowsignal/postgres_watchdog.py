"""What remains when a process is killed: nothing, by a shell that outlives it."""

import contextlib
import os
import shutil
import subprocess
import weakref
from pathlib import Path

# Whole process groups are signalled: initdb's own children are in its group.
SCRIPT = """
group=
while read -r line; do group=$line; done
attempt=0
while [ -n "$group" ] && kill -0 -- "-$group" 2>/dev/null; do
    case $attempt in
        0) kill "-$2" -- "-$group" ;;
        150) kill -QUIT -- "-$group" ;;
        200) kill -KILL -- "-$group" ;;
        250) break ;;
    esac
    attempt=$((attempt + 1))
    sleep 0.1 2>/dev/null || sleep 1
done
rm -rf "$1"
"""


class Watchdog:
    """Removes a folder, and ends the process group it was last told of, once this process is gone.

    It waits for the end of its standard input, which the system closes with this process however
    that ends, SIGKILL included.
    """

    def __init__(self, folder: Path, signal_name: str) -> None:
        self._folder = folder
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "rowsignal-watchdog", folder, signal_name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        _watchdogs.add(self)

    def guard(self, group: int | None) -> None:
        """Name the process group to end; None when it has ended, so that no reused id is hit."""
        assert self._shell.stdin is not None  # noqa: S101 - for the type checker: it is a pipe
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.write(b"%d\n" % group if group else b"\n")
            self._shell.stdin.flush()

    def close(self) -> None:
        """Remove the folder, then end the watchdog."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._shell.kill()
        self._shell.wait()
        self.let_go()

    def let_go(self) -> None:
        """Close this process's end of the pipe."""
        assert self._shell.stdin is not None  # noqa: S101 - as above
        with contextlib.suppress(BrokenPipeError):
            self._shell.stdin.close()


_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for watchdog in list(_watchdogs):
        watchdog.let_go()


# A forked child that kept the pipe open would keep the server alive after its parent.
os.register_at_fork(after_in_child=_leave_to_parent)
