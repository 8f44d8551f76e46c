import asyncio
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal, Self
from urllib.parse import quote

from rowsignal.embedded import data_folder
from rowsignal.embedded.cluster import Cluster
from rowsignal.embedded.ports import free_port
from rowsignal.embedded.programs import (
    Account,
    Programs,
    can_enter,
    find_bin_dir,
    unprivileged_account,
)
from rowsignal.embedded.watchdog import Watchdog
from rowsignal.exceptions import EmbeddedPostgresError

SETTINGS = {
    "listen_addresses": "",
    "log_min_messages": "warning",
    "max_connections": "100",
    "timezone": "UTC",
    "wal_level": "logical",
}
# Commits stay synchronous: without fsync they cost little, and an immediate restart keeps them.
THROW_AWAY_SETTINGS = {"fsync": "off", "full_page_writes": "off"}
OWN_SETTINGS = {"data_directory", "port", "unix_socket_directories"}
INITDB_OPTIONS = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-instructions"]
SHUTDOWN_SIGNALS = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}
DEFAULT_PORT = 5432
MAX_TEMP_DIR = 64  # characters


class EmbeddedPostgres:
    """Run a PostgreSQL server for as long as a `with` or `async with` block lasts.

    It listens on a Unix socket in a folder that only its owner may enter, and trusts every
    connection as `postgres`. Several can run at once. No server process and no temporary folder
    remains after this process ends, not even after SIGKILL.

    - `data_dir`: folder for data that outlives the block, created if it is missing; its commits are
      flushed to disk. Without it the data is deleted at the end and not flushed: commits survive a
      crash of the server, but not of the machine.
    - `bin_dir`: programs to use, of PostgreSQL 14 or newer (default: `find_bin_dir()`).
    - `settings`: server settings by name, such as `{"max_prepared_transactions": "10"}`.
    - `port`: a port of 127.0.0.1 to listen on as well, 0 for a free one. Every user of the machine
      can then connect.
    - `timeout`: seconds for the initialisation, and for each start.

    Under root the server runs as the owner of `data_dir`, or else as the user `postgres`, or else
    as the system's unprivileged user, whose id is 65534.
    """

    def __init__(
        self,
        *,
        data_dir: Path | str | None = None,
        bin_dir: Path | str | None = None,
        settings: Mapping[str, str] | None = None,
        port: int | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._wanted_data_dir = None if data_dir is None else Path(data_dir).absolute()
        self._wanted_bin_dir = None if bin_dir is None else Path(bin_dir).absolute()
        self._wanted_port = port
        self._settings = dict(settings or {})
        self._timeout = timeout
        self._cluster: Cluster | None = None
        self._cleanup = ExitStack()
        if taken := OWN_SETTINGS & self._settings.keys():
            raise ValueError(
                f"EmbeddedPostgres decides on the setting {min(taken)!r}: "
                "leave it out, and use the arguments data_dir and port."
            )

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *failure: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        starting = asyncio.ensure_future(asyncio.to_thread(self.start))
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # A thread cannot be cancelled, so stop the server that it has started.
            await asyncio.wait([starting])
            await asyncio.to_thread(self.stop)
            raise

    async def __aexit__(self, *failure: object) -> None:
        await asyncio.to_thread(self.stop)

    def start(self) -> Self:
        """Start the server and return when it accepts connections: the first time in a second.

        Raises `EmbeddedPostgresError`, with the end of the server's log if there is one.
        """
        if self._cluster is not None:
            raise EmbeddedPostgresError(f"{self!r} was started already.")
        with ExitStack() as cleanup:
            self._start(cleanup)
            self._cleanup = cleanup.pop_all()
        return self

    def stop(self) -> None:
        """Stop the server and remove temporary files; idempotent."""
        # The copy of this object in a forked child leaves its parent's server alone.
        if self._cluster is not None and self._owner == os.getpid():
            self._cluster = None
            self._cleanup.close()

    def restart(self, mode: Literal["fast", "immediate"] = "fast") -> None:
        """Stop the server, by a clean shutdown or as in a crash, and start it again.

        Socket, port and data stay. After `kill`, start the server again.
        """
        if mode not in SHUTDOWN_SIGNALS:
            raise ValueError(f"mode is 'fast' or 'immediate', not {mode!r}.")
        self._started().end(SHUTDOWN_SIGNALS[mode])
        self._started().launch(self._all_settings())

    def kill(self) -> None:
        """Kill the server's first process with SIGKILL; the others end soon after."""
        self._started().end(signal.SIGKILL)

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `postgres`, with asyncpg as driver."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """Return the SQLAlchemy URL of a database on this server; it need not exist."""
        escaped = re.sub(r"[%?]", lambda found: quote(found[0]), database)
        return f"postgresql+asyncpg://postgres@/{escaped}?{self._place()}"

    @property
    def dsn(self) -> str:
        """URL of the database `postgres` for `asyncpg.connect`, `psql` and the like."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """Return the libpq URL of a database on this server; it need not exist."""
        return f"postgresql://postgres@/{quote(database, safe='')}?{self._place()}"

    @property
    def port(self) -> int:
        """Port of 127.0.0.1, if one was requested."""
        self._started()
        if self._port is None:
            raise EmbeddedPostgresError(
                f"{self!r} listens on a Unix socket only: make it with port=0 for a free port."
            )
        return self._port

    @property
    def pid(self) -> int:
        """Id of the server's first process."""
        process = self._started().process
        if process is None:
            raise EmbeddedPostgresError(f"{self!r} was killed: call restart().")
        return process.pid

    @property
    def bin_dir(self) -> Path:
        """Folder of the programs in use, usually with `psql` and `pg_dump`."""
        return self._started().programs.bin_dir

    @property
    def data_dir(self) -> Path:
        """Folder of the data."""
        return self._started().data_dir

    @property
    def version(self) -> str:
        """Version of the server, such as "18.6"."""
        return self._started().programs.version

    @property
    def log(self) -> str:
        """The log of the server since `start`."""
        return self._started().log

    def __repr__(self) -> str:
        data_dir = self._wanted_data_dir or "throw-away data"
        return f"<EmbeddedPostgres on {data_dir}>"

    def _start(self, cleanup: ExitStack) -> None:
        self._owner = os.getpid()
        keeps_data = self._wanted_data_dir is not None
        account = unprivileged_account()
        run_dir = Path(tempfile.mkdtemp(prefix="rowsignal-", dir=_temp_dir(account)))
        watchdog = Watchdog(run_dir, goodbye="INT" if keeps_data else "QUIT")
        cleanup.callback(watchdog.close)
        data_dir = self._wanted_data_dir or run_dir / "data"
        account = data_folder.account_for(data_dir, account)
        if account is not None:
            os.chown(run_dir, *account)
        bin_dir = self._wanted_bin_dir or find_bin_dir()
        programs = Programs.of(bin_dir, account, copy_to=run_dir / "programs")
        cluster = Cluster(programs, data_dir, run_dir / "postgres.log", watchdog, self._timeout)
        cleanup.callback(cluster.end, signal.SIGINT)
        if not data_folder.prepare(data_dir, programs):
            cluster.initialise(INITDB_OPTIONS + ([] if keeps_data else ["--no-sync"]))
        self._run_dir = run_dir
        self._port = free_port() if self._wanted_port == 0 else self._wanted_port
        cluster.launch(self._all_settings())
        self._cluster = cluster

    def _all_settings(self) -> dict[str, str]:
        settings = SETTINGS | {"unix_socket_directories": str(self._run_dir)}
        if self._wanted_data_dir is None:
            settings |= THROW_AWAY_SETTINGS
        if self._port is not None:
            settings |= {"listen_addresses": "127.0.0.1", "port": str(self._port)}
        return settings | self._settings

    def _started(self) -> Cluster:
        if self._cluster is None:
            raise EmbeddedPostgresError(
                f"{self!r} does not run: use it in a with block, or call start()."
            )
        return self._cluster

    def _place(self) -> str:
        self._started()
        place = f"host={quote(str(self._run_dir), safe='/')}"
        # Clients without a port would use PGPORT, which may be another server's.
        if self._port is not None or "PGPORT" in os.environ:
            place += f"&port={self._port or DEFAULT_PORT}"
        return place


@contextmanager
def postgres_url(server: EmbeddedPostgres | None = None) -> Iterator[str]:
    """Yield the SQLAlchemy URL in `DATABASE_URL`, or that of a server started for the block.

    A URL that names no driver gets asyncpg. Without `DATABASE_URL` it starts `server`, by default
    one with temporary data.
    """
    if given := os.environ.get("DATABASE_URL"):
        yield re.sub(r"^postgres(ql)?://", "postgresql+asyncpg://", given)
        return
    with server or EmbeddedPostgres() as started:
        yield started.url


def _temp_dir(account: Account | None) -> Path:
    # The path of a socket is limited to some 100 bytes; the temporary folders of macOS are long.
    usual = Path(tempfile.gettempdir())
    is_good = len(str(usual)) <= MAX_TEMP_DIR and can_enter(usual, account)
    return usual if is_good else Path("/tmp")  # noqa: S108 - only its name is predictable
