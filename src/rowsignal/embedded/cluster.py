"""The process of a server or of initdb, which ends with this one."""

import os
import signal
import subprocess
import time
from pathlib import Path

from rowsignal.embedded import data_folder
from rowsignal.embedded.programs import Programs
from rowsignal.embedded.watchdog import Watchdog
from rowsignal.exceptions import EmbeddedPostgresError

LOG_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT

# Seconds that a process gets before the next, harder signal.
KILL_TIMEOUTS = ((signal.SIGQUIT, 15.0), (signal.SIGKILL, 10.0))


class Cluster:
    """One data folder and the process that serves it."""

    def __init__(
        self, programs: Programs, data_dir: Path, log_file: Path, watchdog: Watchdog, timeout: float
    ) -> None:
        self.programs = programs
        self.data_dir = data_dir
        self.log_file = log_file
        self.process: subprocess.Popen[bytes] | None = None
        self._watchdog = watchdog
        self._timeout = timeout
        self._log_start = 0

    def initialise(self, options: list[str]) -> None:
        """Fill the data folder."""
        folder = str(self.data_dir)
        process = self._spawn(["initdb", "--pgdata", folder, "--username=postgres", *options])
        try:
            code = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            raise self._failure(f"initdb took longer than {self._timeout} s") from None
        self._forget()
        if code != 0:
            raise self._failure("initdb failed")

    def launch(self, settings: dict[str, str]) -> None:
        """Start the server and return when it accepts connections."""
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        command = ["postgres", "-D", str(self.data_dir), *arguments]
        deadline = time.monotonic() + self._timeout
        process = self._spawn(command)
        while not data_folder.is_ready(self.data_dir, process.pid):
            if process.poll() is not None:
                self._forget()
                # Orphans of a killed server hold its shared memory until they end.
                if "is still in use" not in self.log[self._log_start :]:
                    raise self._failure("The server did not start")
                process = self._spawn(command)
            if time.monotonic() > deadline:
                raise self._failure(f"The server was not ready after {self._timeout} s")
            time.sleep(0.01)

    def end(self, number: signal.Signals) -> None:
        """End the process, with harder signals after timeouts; return when it has ended."""
        process = self.process
        if process is None:
            return
        process.send_signal(number)
        for harder, timeout in KILL_TIMEOUTS:
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.send_signal(harder)
        process.wait()
        self._forget()

    @property
    def log(self) -> str:
        """The output of the server and of initdb."""
        with data_folder.open_plain(self.log_file) as log:
            return log.read()

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        program, *arguments = command
        with data_folder.open_plain(self.log_file, LOG_FLAGS) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self.process = subprocess.Popen(  # noqa: S603 - one of the programs asked for
                [self.programs.bin_dir / program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **self.programs.options(),
            )
        self._watchdog.guard(self.process.pid)
        return self.process

    def _forget(self) -> None:
        self.process = None
        self._watchdog.guard(None)

    def _failure(self, what: str) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(f"{what}. The end of its log:\n{self.log[-2000:]}")
