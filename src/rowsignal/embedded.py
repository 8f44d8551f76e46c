"""A PostgreSQL server of one's own, for tests, demos and development."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Literal, Self
from urllib.parse import quote

from rowsignal.exceptions import EmbeddedPostgresError
from rowsignal.postgres_programs import (
    Account,
    copy_programs,
    find_bin_dir,
    has_programs,
    process_options,
    read_version,
    unprivileged_account,
)
from rowsignal.postgres_watchdog import Watchdog

__all__ = ["EmbeddedPostgres", "find_bin_dir", "postgres_url"]

SETTINGS = {
    "listen_addresses": "",
    "log_min_messages": "warning",
    "max_connections": "100",
    "timezone": "UTC",
    "wal_level": "logical",
}
# Commits stay synchronous: with fsync off they cost little, and survive an immediate restart.
THROW_AWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off"}
DEFAULT_PORT = 5432
SHUTDOWN_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class EmbeddedPostgres:
    """Run a PostgreSQL server for as long as a `with` or `async with` block lasts.

    It listens on a Unix socket in a folder that only its owner may enter, and lets everybody who
    reaches that in, as `postgres`. Several can run at once. However the process ends, SIGKILL
    included, no server process and no temporary folder stays behind.

    - `data_dir`: a folder for data that outlives the block, made when it is missing; commits are
      then flushed to disk. Without it the data is thrown away and nothing is flushed: commits
      survive a crash of the server, not of the machine.
    - `bin_dir`: the programs to use; by default what `find_bin_dir` finds. PostgreSQL 14 or newer.
    - `settings`: server settings by name, such as `{"max_prepared_transactions": "10"}`.
    - `port`: listen on this port of 127.0.0.1 as well, 0 for a free one. Any user of the machine
      can then connect.
    - `timeout`: seconds that each of initialising and starting may take.

    Run by root, the server runs as the user postgres or nobody. Raises `EmbeddedPostgresError`
    with the end of the server's log when it does not start.
    """

    def __init__(
        self,
        *,
        data_dir: Path | None = None,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._keeps_data = data_dir is not None
        self._wanted_data_dir = data_dir
        self._wanted_bin_dir = bin_dir
        self._wanted_port = port
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None
        if taken := {"data_directory", "port", "unix_socket_directories"} & self._settings.keys():
            raise ValueError(f"The setting {min(taken)!r} is decided by EmbeddedPostgres itself.")

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread can not be cancelled: what it starts has to be stopped.
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self.stop)

    def start(self) -> Self:
        """Start the server and return when it accepts connections; about a second at first."""
        if self._watchdog is not None:
            raise EmbeddedPostgresError(f"{self!r} runs already.")
        self._owner = os.getpid()
        self._run_dir = Path(tempfile.mkdtemp(prefix="rowsignal-", dir=_short_temp_dir()))
        self._watchdog = Watchdog(self._run_dir, "INT" if self._keeps_data else "QUIT")
        try:
            self._prepare_programs()
            self._prepare_data()
            self._port = _free_port() if self._wanted_port == 0 else self._wanted_port
            self._launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server and remove what is not to stay; harmless when it is stopped already."""
        # A forked child leaves its parent's server alone.
        if self._watchdog is None or self._owner != os.getpid():
            return
        self._end(signal.SIGINT)
        self._watchdog.close()
        self._watchdog = None

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server, with a clean shutdown or a crash, and start it in the same place.

        Socket, port and data stay. After `kill`, this starts the server again.
        """
        if mode not in SHUTDOWN_SIGNALS:
            raise ValueError(f"mode is 'fast' or 'immediate', not {mode!r}.")
        self._require_started()
        self._end(SHUTDOWN_SIGNALS[mode])
        self._launch()

    def kill(self) -> None:
        """Kill the server's first process with SIGKILL; the others end when they notice."""
        self._require_started()
        self._end(signal.SIGKILL)

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `postgres`, with asyncpg as driver."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database on this server; it need not exist yet."""
        escaped = re.sub(r"[%?]", lambda found: quote(found[0]), database)
        return f"postgresql+asyncpg://postgres@/{escaped}?{self._place()}"

    @property
    def dsn(self) -> str:
        """URL of the database `postgres` for `asyncpg.connect`, `psql` and other libpq programs."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """Return the libpq URL of a database on this server; it need not exist yet."""
        return f"postgresql://postgres@/{quote(database, safe='')}?{self._place()}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        if self._process is None:
            raise EmbeddedPostgresError(f"{self!r} is not running.")
        return self._process.pid

    @property
    def port(self) -> int:
        """Port on 127.0.0.1, where one was asked for."""
        self._require_started()
        if self._port is None:
            raise EmbeddedPostgresError(
                f"{self!r} listens on a Unix socket only: make it with port=0 for a free port."
            )
        return self._port

    @property
    def bin_dir(self) -> Path:
        """Folder of the programs in use; also of `psql` and `pg_dump` where they are installed."""
        self._require_started()
        return self._bin_dir

    @property
    def data_dir(self) -> Path:
        """Folder of the data."""
        self._require_started()
        return self._data_dir

    @property
    def version(self) -> str:
        """Version of the server, such as "18.6"."""
        self._require_started()
        return self._version

    @property
    def log(self) -> str:
        """What the server has logged since it was started first."""
        self._require_started()
        return self._log_file.read_text(errors="replace")

    def __repr__(self) -> str:
        state = "stopped" if self._process is None else f"process {self._process.pid}"
        return f"<EmbeddedPostgres {state}>"

    def _require_started(self) -> None:
        if self._watchdog is None:
            raise EmbeddedPostgresError(
                f"{self!r} was not started: use it in a with block or call start()."
            )

    def _place(self) -> str:
        self._require_started()
        place = f"host={quote(str(self._run_dir), safe='/')}"
        # Clients fall back to PGPORT, which belongs to another server.
        if self._port is not None or "PGPORT" in os.environ:
            place += f"&port={self._port or DEFAULT_PORT}"
        return place

    def _prepare_programs(self) -> None:
        self._log_file = self._run_dir / "postgres.log"
        self._account = unprivileged_account()
        if self._account:
            os.chown(self._run_dir, *self._account)
        self._bin_dir = self._wanted_bin_dir or find_bin_dir()
        if not has_programs(self._bin_dir):
            raise EmbeddedPostgresError(f"{self._bin_dir} holds no postgres and initdb.")
        version = read_version(self._bin_dir, self._account)
        if version is None and self._account:
            copy = self._run_dir / "programs"
            self._bin_dir = copy_programs(self._bin_dir, copy, self._account)
            version = read_version(self._bin_dir, self._account)
        if version is None:
            raise EmbeddedPostgresError(f"{self._bin_dir / 'postgres'} does not run.")
        self._version = version

    def _prepare_data(self) -> None:
        self._data_dir = (self._wanted_data_dir or self._run_dir / "data").absolute()
        self._data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._account:
            _hand_over(self._data_dir, self._account)
        if (self._data_dir / "PG_VERSION").exists():
            self._check_major()
            release_stale_pid_file(self._data_dir)
        else:
            self._initialise()

    def _initialise(self) -> None:
        command = [
            *(self._bin_dir / "initdb", "--pgdata", self._data_dir, "--username=postgres"),
            *("--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"),
            *([] if self._keeps_data else ["--no-sync"]),
        ]
        self._spawn(command)
        process = self._process
        assert process is not None
        try:
            code = process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self._end(signal.SIGINT)
            raise self._failure(f"initdb took longer than {self._timeout} s") from None
        self._forget()
        if code:
            raise self._failure("initdb failed")

    def _check_major(self) -> None:
        made_by = (self._data_dir / "PG_VERSION").read_text().strip()
        if made_by != re.match(r"\d+", self._version)[0]:
            raise EmbeddedPostgresError(
                f"The data in {self._data_dir} was made by PostgreSQL {made_by}, and the programs "
                f"in {self._bin_dir} are {self._version}: point ROWSIGNAL_PG_BIN or bin_dir= to "
                f"those of PostgreSQL {made_by}, or choose another data_dir."
            )

    def _launch(self) -> None:
        settings = SETTINGS | ({} if self._keeps_data else THROW_AWAY_SETTINGS)
        if self._port is not None:
            settings |= {"listen_addresses": "127.0.0.1", "port": str(self._port)}
        settings |= self._settings | {"unix_socket_directories": str(self._run_dir)}
        command = [self._bin_dir / "postgres", "-D", self._data_dir]
        for name, value in settings.items():
            command += ["-c", f"{name}={value}"]
        deadline = time.monotonic() + self._timeout
        self._spawn(command)
        while not self._is_ready():
            if self._process is None:
                # After kill(), the old server's last processes may not have noticed yet.
                if "is still in use" not in self.log[-500:]:
                    raise self._failure("The server did not start")
                self._spawn(command)
            if time.monotonic() > deadline:
                raise self._failure(f"The server was not ready after {self._timeout} s")
            time.sleep(0.01)

    def _is_ready(self) -> bool:
        """Look into postmaster.pid: process id in its first line, state in its eighth."""
        if self._process is None or self._process.poll() is not None:
            self._forget()
            return False
        try:
            lines = (self._data_dir / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def _spawn(self, command: list[Path | str]) -> None:
        with self._log_file.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                **process_options(self._account),
            )
        self._watchdog.guard(self._process.pid)

    def _end(self, signal_number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        for number, patience in ((signal_number, 15), (signal.SIGQUIT, 10), (signal.SIGKILL, 10)):
            process.send_signal(number)
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        self._forget()

    def _forget(self) -> None:
        self._process = None
        self._watchdog.guard(None)

    def _failure(self, what: str) -> EmbeddedPostgresError:
        return EmbeddedPostgresError(f"{what}. The end of its log:\n{self.log[-2000:]}")


@contextmanager
def postgres_url(**options: object) -> Iterator[str]:
    """Yield the SQLAlchemy URL of `DATABASE_URL`, or that of a server started for the block."""
    if given := os.environ.get("DATABASE_URL"):
        yield re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", given)
        return
    with EmbeddedPostgres(**options) as server:
        yield server.url


def _short_temp_dir() -> str | None:
    # A socket's path is limited to some 100 bytes; macOS's temporary folders are long.
    return "/tmp" if os.access("/tmp", os.W_OK) else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _hand_over(data_dir: Path, account: Account) -> None:
    os.chown(data_dir, *account)


def release_stale_pid_file(data_dir: Path) -> None:
    pass
