import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from importlib.metadata import entry_points
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import inspect, make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.orm.tables.databases import create_database, drop_database
from rowsignal.payload import LOCK_CLASS
from rowsignal.pytest_plugin import (
    create_db_session,
    create_worker_database,
    sessions,
    worker_database_url,
)
from rowsignal.pytest_plugin.scratch import LEASES, ScratchDatabases

pytest_plugins = ["pytester"]

CONFTEST = """
import os
import pytest
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

pytest_plugins = ["rowsignal.pytest_plugin"]


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    __table_args__ = {"schema": "Stock room"}
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="session")
def database_metadata():
    return Base


@pytest.fixture(scope="session")
def prepare_database():
    async def prepare(engine):
        async with engine.begin() as connection:
            await connection.execute(text("create table prepared as select 1 as one"))
    return prepare
"""

TESTS = """
import os
import asyncpg
import pytest


async def fill(url):
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        assert await connection.fetchval("select one from prepared") == 1
        row = await connection.fetchval('insert into "Stock room".item default values returning id')
        assert row == 1, "another test's row is still there, or its sequence"
        with open("databases.txt", "a") as file:
            file.write(await connection.fetchval("select current_database()") + "\\n")
    finally:
        await connection.close()


@pytest.mark.parametrize("number", range(2))
async def test_of_its_own(database_url, postgres_url, number):
    await fill(database_url)
    with open("servers.txt", "a") as file:
        file.write(postgres_url + "\\n")


@pytest.mark.parametrize("number", range(2))
async def test_of_all(worker_database, cleanup_tables, number):
    await fill(worker_database)
"""


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "order"
    __table_args__ = ({"schema": "Shop"},)

    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(scope="module")
def external() -> Iterator[EmbeddedPostgres]:
    """A server that the plugin did not start."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "PYTEST_XDIST_WORKER"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def temp_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder that servers of child processes make their own folders in."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o777)
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


@pytest.fixture
def project(pytester: pytest.Pytester) -> pytest.Pytester:
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\naddopts = -p no:hypothesispytest\n"
    )
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_stock=TESTS)
    return pytester


def lines(project: pytest.Pytester, name: str) -> list[str]:
    return (project.path / name).read_text().splitlines()


def servers_in(temp_dir: Path) -> list[Path]:
    return list(temp_dir.glob("rowsignal-*"))


async def databases(server: EmbeddedPostgres) -> set[str]:
    connection = await asyncpg.connect(server.dsn)
    try:
        rows = await connection.fetch("select datname from pg_database where not datistemplate")
    finally:
        await connection.close()
    return {row["datname"] for row in rows} - {"postgres"}


async def execute(url: str, statement: str) -> None:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(statement))
    await engine.dispose()


def test_one_server_a_run_and_one_database_a_test(project: pytest.Pytester, temp_dir: Path) -> None:
    project.runpytest_subprocess().assert_outcomes(passed=4)
    names = lines(project, "databases.txt")
    assert len(set(names[:2])) == 2
    assert len(set(names[2:])) == 1
    assert not any(temp_dir.iterdir())


def test_workers_share_the_server_and_nothing_else(
    project: pytest.Pytester, temp_dir: Path
) -> None:
    project.runpytest_subprocess("-n2", "--dist=each").assert_outcomes(passed=8)
    assert len(set(lines(project, "servers.txt"))) == 1
    names = lines(project, "databases.txt")
    assert len(set(names)) == 6, "one of each of four tests, and of each worker for two more"
    assert not any(temp_dir.iterdir())


@pytest.mark.parametrize("arguments", [(), ("-n1",)], ids=["alone", "worker"])
async def test_given_server_is_used_and_left_as_it_was(
    project: pytest.Pytester,
    external: EmbeddedPostgres,
    temp_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.setenv("DATABASE_URL", external.dsn)
    project.makepyfile(test_failing="def test_fails(database_url, worker_database): assert 0")
    project.runpytest_subprocess(*arguments).assert_outcomes(passed=4, failed=1)
    assert {make_url(url) for url in lines(project, "servers.txt")} == {make_url(external.url)}
    assert await databases(external) == set()
    assert not servers_in(temp_dir), "a server was started although one was given"


CRASH = "import os, signal\ndef test_crash(database_url): os.kill(os.getpid(), signal.SIGKILL)"


async def test_crashed_worker_leaves_nothing_on_a_given_server(
    project: pytest.Pytester, external: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", external.url)
    project.makepyfile(test_a_crash=CRASH)
    result = project.runpytest_subprocess("-n1", "--max-worker-restart=0", "test_a_crash.py")
    result.stdout.fnmatch_lines(["*worker 'gw0' crashed*"])
    assert await databases(external) == set()


async def test_what_a_killed_run_left_on_a_given_server_goes_with_the_next(
    project: pytest.Pytester, external: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", external.url)
    project.makepyfile(test_a_crash=CRASH)
    assert project.runpytest_subprocess("test_a_crash.py").ret == -9
    assert len(await databases(external)) == 2
    project.runpytest_subprocess("-k", "own[0]").assert_outcomes(passed=1, deselected=4)
    assert await databases(external) == set()


def test_killed_run_leaves_no_server_of_its_own(project: pytest.Pytester, temp_dir: Path) -> None:
    project.makepyfile(test_a_crash=CRASH)
    assert project.runpytest_subprocess("test_a_crash.py").ret == -9
    deadline = time.monotonic() + 15
    while any(temp_dir.iterdir()):
        assert time.monotonic() < deadline, "the server's folder is still there"
        time.sleep(0.02)


def test_server_and_tables_can_be_chosen(
    project: pytest.Pytester, external: EmbeddedPostgres, temp_dir: Path
) -> None:
    project.makeconftest(
        "import pytest\n"
        'pytest_plugins = ["rowsignal.pytest_plugin"]\n'
        '@pytest.fixture(scope="session")\n'
        f"def postgres_url(): return {external.url!r}\n"
    )
    project.makepyfile(
        test_stock="""
        import asyncpg
        from sqlalchemy import make_url

        async def test_empty(database_url, postgres_url):
            assert make_url(database_url).query == make_url(postgres_url).query
            connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
            query = "select count(*) from pg_stat_user_tables"
            assert await connection.fetchval(query) == 0
            await connection.close()

        def test_synchronous(worker_database, cleanup_tables):
            assert worker_database
        """
    )
    project.runpytest_subprocess().assert_outcomes(passed=2)
    assert not servers_in(temp_dir)


def test_is_not_loaded_unless_requested() -> None:
    plugins = [plugin.value for plugin in entry_points(group="pytest11")]
    assert plugins
    assert not any(value.startswith("rowsignal") for value in plugins)


async def end_connections_of_others(server: EmbeddedPostgres) -> None:
    await execute(
        server.url,
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where backend_type = 'client backend' and pid <> pg_backend_pid()",
    )


def test_leases_are_no_locks_of_listeners() -> None:
    assert LEASES != LOCK_CLASS


async def test_processes_leave_each_others_databases_alone(external: EmbeddedPostgres) -> None:
    one, other = ScratchDatabases(external.url), ScratchDatabases(external.url)
    first, second = one.create(), other.create()
    both = {make_url(first).database, make_url(second).database}
    assert await databases(external) == both
    third = ScratchDatabases(external.url)
    third.drop_orphans()
    third.close()
    assert await databases(external) == both
    one.close()
    assert await databases(external) == both - {make_url(first).database}
    other.drop(second)
    other.close()
    assert await databases(external) == set()


async def test_process_that_lost_its_connection_goes_on(external: EmbeddedPostgres) -> None:
    one = ScratchDatabases(external.url)
    first = one.create()
    await end_connections_of_others(external)
    second = one.create(first)
    await end_connections_of_others(external)
    one.drop(second)
    names = await databases(external)
    one.close()
    assert names == {make_url(first).database}
    assert await databases(external) == set()


def test_workers_database_is_named_after_the_base_and_the_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = "postgresql+asyncpg://me:p%40ss@host/shop?ssl=require"
    own = worker_database_url(base)
    assert own == "postgresql+asyncpg://me:p%40ss@host/shop_test_db?ssl=require"
    assert make_url(worker_database_url(base, "t", prefix="lab-new")).database == "lab-new_t"
    assert make_url(worker_database_url("postgresql://host")).database == "test_db"
    with pytest.raises(ValueError, match="'shop' itself"):
        worker_database_url("postgresql+asyncpg://host/shop", "")
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw3")
    assert make_url(worker_database_url(base)).database == "shop_gw3"
    with pytest.raises(ValueError, match="'test_gw3' itself"):
        worker_database_url("postgresql+asyncpg://host/test_gw3", prefix="test")
    long = make_url(worker_database_url(f"postgresql://host/{'x' * 63}")).database
    assert len(long) == 63
    assert long != "x" * 63


async def test_workers_database_lives_as_long_as_its_block(external: EmbeddedPostgres) -> None:
    base = external.url_of("Shop-1")
    await create_database("Shop-1_test_db", server_url=external.url)
    await execute(external.url_of("Shop-1_test_db"), "create table left_over ()")
    async with create_worker_database(base) as url:
        assert make_url(url).database == "Shop-1_test_db"
        await execute(url, "create table left_over ()")
    assert await databases(external) == set()


async def test_workers_database_goes_although_its_block_failed(external: EmbeddedPostgres) -> None:
    base = external.url_of("shop")
    await create_database("shop", server_url=external.url)

    async def fail() -> None:
        async with create_worker_database(base, prefix="lab", server_url=base) as url:
            still_open.append(await asyncpg.connect(url.replace("+asyncpg", "")))
            raise ZeroDivisionError

    still_open: list[asyncpg.Connection] = []
    with pytest.raises(ZeroDivisionError):
        await fail()
    await still_open[0].close()
    assert await databases(external) == {"shop"}
    await drop_database("shop", server_url=external.url)


async def test_the_database_to_create_from_is_never_dropped(external: EmbeddedPostgres) -> None:
    base = external.url_of("shop")
    await create_database("shop_test_db", server_url=external.url)
    with pytest.raises(ValueError, match="cannot drop itself"):
        async with create_worker_database(base, server_url=external.url_of("shop_test_db")):
            pass
    assert await databases(external) == {"shop_test_db"}
    await drop_database("shop_test_db", server_url=external.url)


@pytest.fixture
async def own_url(external: EmbeddedPostgres) -> AsyncIterator[str]:
    async with create_worker_database(external.url) as url:
        yield url


async def count(url: str) -> int | None:
    """Rows in the orders' table; None where there is no such table."""
    engine = create_async_engine(url)
    async with AsyncSession(engine) as session:
        exists = await session.scalar(text('select to_regclass(\'"Shop"."order"\')'))
        rows = len((await session.scalars(select(Order))).all()) if exists else None
    await engine.dispose()
    return rows


@pytest.mark.parametrize(
    ("options", "rows_afterwards"),
    [({}, None), ({"drop_tables": False, "cleanup": True}, 0), ({"drop_tables": False}, 1)],
    ids=["dropped", "emptied", "left"],
)
async def test_session_has_tables_however_its_block_ends(
    own_url: str, options: dict[str, bool], rows_afterwards: int | None
) -> None:
    for failure in (None, ZeroDivisionError):
        with pytest.raises(failure) if failure else nullcontext():
            async with create_db_session(own_url, Base, **options) as session:
                if rows_afterwards != 1 or failure is None:
                    session.add(Order())
                await session.commit()
                assert await count(own_url) == 1, "what is committed is visible to everybody"
                session.add(Order())
                await session.flush()
                if failure:
                    raise failure
        assert await count(own_url) == rows_afterwards


async def test_session_takes_options_of_engine_and_session(own_url: str) -> None:
    async with create_db_session(
        own_url.replace("+asyncpg", ""),
        Base.metadata,
        engine_kwargs={"connect_args": {"server_settings": {"application_name": "mine"}}},
        session_kwargs={"autoflush": False},
        expire_on_commit=True,
    ) as session:
        assert await session.scalar(text("show application_name")) == "mine"
        assert not session.sync_session.autoflush
        order = Order()
        session.add(order)
        await session.commit()
        assert inspect(order).expired


async def test_forgotten_session_is_an_error_and_not_a_hang(
    own_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "DROP_LOCK_TIMEOUT", "set local lock_timeout = '50ms'")
    engine = create_async_engine(own_url)
    async with AsyncSession(engine) as forgotten:
        with pytest.raises(DBAPIError, match="lock timeout"):
            async with create_db_session(own_url, Base):
                await forgotten.scalars(select(Order))
    await engine.dispose()


GUIDE = Path(__file__).parents[3] / "docs" / "how-to" / "testing.md"


@pytest.mark.parametrize("chapter", ["A first test", "Fixtures of your own"])
def test_the_guide_works(project: pytest.Pytester, chapter: str) -> None:
    (project.path / "test_stock.py").unlink()
    section = GUIDE.read_text().partition(f"## {chapter}\n")[2].partition("\n## ")[0]
    files = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", section, re.DOTALL)
    assert [name == "conftest.py" for name, _ in files] == [True, False]
    for name, program in files:
        (project.path / name).write_text(program)
    expected = files[1][1].count("async def test_")
    project.runpytest_subprocess().assert_outcomes(passed=expected)
