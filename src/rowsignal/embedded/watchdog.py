"""The watchdog: a shell that cleans up after this process, even after SIGKILL."""

import contextlib
import os
import shutil
import subprocess
import weakref
from pathlib import Path

# The group is signalled as a whole, since it includes the children of initdb. The folder is removed
# last, since a server without its files would log errors until its end.
SCRIPT = """
group=
while read -r line; do group=$line; done
attempt=0
while [ -n "$group" ] && kill -s 0 -- "-$group" 2>/dev/null; do
    case $attempt in
        0) kill -s "$2" -- "-$group" ;;
        150) kill -s QUIT -- "-$group" ;;
        200) kill -s KILL -- "-$group" ;;
        250) break ;;
    esac
    attempt=$((attempt + 1))
    sleep 0.1 2>/dev/null || sleep 1
done
rm -rf "$1"
"""


class Watchdog:
    """Removes a folder and ends the guarded process group once this process has ended.

    It waits for the end of its standard input, which the system closes at every end of a process,
    also after SIGKILL. It sends the group the signal `goodbye`, after 15 s QUIT, after 5 more KILL.
    """

    def __init__(self, folder: Path, *, goodbye: str) -> None:
        self._folder = folder
        reading_end, self._writing_end = os.pipe()
        self._shell = subprocess.Popen(  # noqa: S603 - a fixed script
            ["/bin/sh", "-c", SCRIPT, "rowsignal-watchdog", folder, goodbye],
            stdin=reading_end,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        os.close(reading_end)
        _watchdogs.add(self)

    def guard(self, group: int | None) -> None:
        """Set the process group to end; None once it has ended and its id may be reused."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writing_end, b"%d\n" % group if group else b"\n")

    def close(self) -> None:
        """Remove the folder now, and end the watchdog."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._shell.kill()
        self._shell.wait()
        self.let_go()

    def let_go(self) -> None:
        """Close this process's end of the pipe."""
        _watchdogs.discard(self)
        os.close(self._writing_end)


_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _leave_to_parent() -> None:
    for watchdog in list(_watchdogs):
        watchdog.let_go()


# A forked child that kept the pipe open would keep the server alive after its parent.
os.register_at_fork(after_in_child=_leave_to_parent)
