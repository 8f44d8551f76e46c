"""AsyncDatabaseManager: creating, upgrading, dropping, and saying how things stand."""

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import MetaData, Table, inspect, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.exceptions import MigrationError
from rowsignal.orm.manager.manager import AsyncDatabaseManager, DatabaseStatus, SyncResult
from support.migration_projects import Project


class Base(DeclarativeBase):
    pass


class Shelf(Base):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None]


CREATE_SHELVES = 'op.create_table("shelves", sa.Column("id", sa.Integer, primary_key=True))'
ADD_NAME = 'op.add_column("shelves", sa.Column("name", sa.String))'
FIRST_SHELF = "op.execute(\"insert into shelves (name) values ('the first')\")"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.add("a1", None, CREATE_SHELVES, 'op.drop_table("shelves")')
    project.add("b2", "a1", f"{ADD_NAME}\n{FIRST_SHELF}", 'op.drop_column("shelves", "name")')
    return project


@pytest.fixture
async def manager(project: Project, database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    manager = AsyncDatabaseManager(database_url, str(project.location), base_model=Base)
    yield manager
    await manager.dispose()


async def tables(engine: AsyncEngine) -> set[str]:
    async with engine.connect() as connection:
        return set(await connection.run_sync(lambda c: inspect(c).get_table_names()))


async def rows(engine: AsyncEngine) -> int | None:
    async with engine.connect() as connection:
        return await connection.scalar(text("select count(*) from shelves"))


async def test_an_empty_database_has_no_info_and_is_created_from_the_models(manager):
    assert await manager.get_status() is DatabaseStatus.NO_INFO
    assert await manager.get_current_revision() is None
    await manager.create()
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE
    assert await manager.get_current_revision() == manager.get_latest_revision() == "b2"
    assert await rows(manager.engine) == 0, "create() runs no migration"


async def test_upgrade_and_downgrade_go_up_and_down_the_revisions(manager):
    await manager.upgrade("a1")
    assert await manager.get_status() is DatabaseStatus.UPGRADE_AVAILABLE
    await manager.upgrade()
    assert await manager.get_current_revision() == "b2"
    await manager.downgrade()
    assert await manager.get_current_revision() == "a1"
    await manager.downgrade("base")
    assert await manager.get_status() is DatabaseStatus.NO_INFO
    assert await tables(manager.engine) == {"alembic_version"}


async def test_sync_creates_then_finds_nothing_to_do(manager):
    assert await manager.sync() is SyncResult.CREATED
    assert await manager.sync() is SyncResult.ALREADY_UP_TO_DATE


async def test_sync_upgrades_what_is_behind(manager):
    await manager.upgrade("a1")
    assert await manager.sync() is SyncResult.UPGRADED
    assert await rows(manager.engine) == 1


async def test_sync_can_run_every_migration_so_that_their_rows_are_there(manager):
    assert await manager.sync(create="migrations") is SyncResult.CREATED
    assert await rows(manager.engine) == 1


async def test_sync_refuses_a_way_of_creating_that_it_does_not_know(manager):
    with pytest.raises(ValueError, match="'metadata' or 'migrations'"):
        await manager.sync(create="magic")


async def test_syncing_without_revisions_creates_once(tmp_path, database_url):
    empty = Project(tmp_path / "empty")
    manager = AsyncDatabaseManager(database_url, empty.location, base_model=Base)
    assert manager.get_latest_revision() is None
    assert await manager.sync() is SyncResult.CREATED
    assert await manager.sync() is SyncResult.ALREADY_UP_TO_DATE
    await manager.dispose()


@pytest.mark.parametrize("create", ["metadata", "migrations"])
async def test_tables_without_a_version_table_are_refused_by_name(manager, create):
    async with manager.engine.begin() as connection:
        await connection.execute(text("create table shelves (id serial primary key)"))
    with pytest.raises(MigrationError, match=r"holds shelves already.*stamp"):
        await manager.sync(create=create)
    assert await tables(manager.engine) == {"shelves"}
    await manager.stamp("a1")
    assert await manager.sync() is SyncResult.UPGRADED


async def test_creating_twice_does_no_harm(manager):
    await manager.create()
    await manager.create()
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE


async def test_drop_leaves_nothing_and_does_not_mind_an_empty_database(manager):
    await manager.drop()
    await manager.create()
    await manager.drop()
    await manager.drop()
    assert await tables(manager.engine) == set()
    assert await manager.sync() is SyncResult.CREATED


async def test_missing_permission_is_an_error_and_no_status(manager, database_url):
    await manager.create()
    await execute_all(
        manager.engine,
        "drop role if exists stranger",
        "create role stranger login",
        "revoke all on alembic_version from public",
    )
    stranger = AsyncDatabaseManager(
        database_url.replace("postgres@", "stranger@"), manager._location, base_model=Base
    )
    with pytest.raises(ProgrammingError, match="permission denied"):
        await stranger.get_status()
    with pytest.raises(ProgrammingError, match="permission denied"):
        await stranger.sync()
    await execute_all(manager.engine, "revoke usage on schema public from public")
    with pytest.raises(MigrationError, match="Role stranger may use no schema"):
        await stranger.get_status()
    await stranger.dispose()
    await execute_all(manager.engine, "drop role stranger")


async def execute_all(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def test_a_database_that_can_not_be_reached_is_an_error(project, tmp_path):
    manager = AsyncDatabaseManager(
        f"postgresql://postgres@/d?host={tmp_path}", project.location, base_model=Base
    )
    with pytest.raises((OSError, OperationalError)):
        await manager.get_status()


async def test_a_revision_from_elsewhere_is_an_error(manager):
    await manager.create()
    await execute_all(manager.engine, "update alembic_version set version_num = 'zz'")
    with pytest.raises(MigrationError, match="revision zz"):
        await manager.get_status()


async def test_two_heads_are_upgraded_both(manager, project):
    project.add("c3", "a1", 'op.create_table("c", sa.Column("id", sa.Integer))')
    assert manager.get_latest_revision() == "b2,c3"
    assert await manager.sync(create="migrations") is SyncResult.CREATED
    assert await manager.get_current_revision() == "b2,c3"
    assert await manager.sync() is SyncResult.ALREADY_UP_TO_DATE


async def test_two_heads_are_recorded_both_when_created_from_the_models(manager, project):
    project.add("c3", "a1", 'op.create_table("c", sa.Column("id", sa.Integer))')
    await manager.create()
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE


async def test_a_migration_may_leave_its_transaction(manager, project):
    project.add(
        "c3",
        "b2",
        """
        with op.get_context().autocommit_block():
            op.execute("create index concurrently by_name on shelves (name)")
        """,
    )
    assert await manager.sync(create="migrations") is SyncResult.CREATED
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE


async def test_an_index_built_concurrently_does_not_wait_for_those_who_wait_for_the_lock(
    manager, project, database_url
):
    await manager.upgrade()
    project.add(
        "c3",
        "b2",
        """
        with op.get_context().autocommit_block():
            op.execute("create index concurrently by_name on shelves (name)")
        """,
    )
    others = [AsyncDatabaseManager(database_url, project.location) for _ in range(3)]
    results = await asyncio.gather(*(m.sync() for m in [manager, *others]))
    assert sorted(result.name for result in results) == ["ALREADY_UP_TO_DATE"] * 3 + ["UPGRADED"]
    for other in others:
        await other.dispose()


async def test_tasks_that_share_a_manager_take_turns(manager):
    results = await asyncio.gather(*(manager.sync(create="migrations") for _ in range(5)))
    assert sorted(r.name for r in results) == ["ALREADY_UP_TO_DATE"] * 4 + ["CREATED"]
    assert await rows(manager.engine) == 1


async def test_syncs_of_two_databases_in_one_process_do_not_mix(server, tmp_path, database_url):
    admin = await asyncpg.connect(server.dsn)
    await admin.execute("create database second_one")
    urls = [database_url, server.url_of("second_one")]
    managers = []
    for number, url in enumerate(urls):
        project = Project(tmp_path / str(number))
        project.add("a1", None, f'op.create_table("t{number}", sa.Column("id", sa.Integer))')
        managers.append(AsyncDatabaseManager(url, project.location, base_model=Base))
    await asyncio.gather(*(manager.sync(create="migrations") for manager in managers))
    for number, manager in enumerate(managers):
        assert await tables(manager.engine) == {f"t{number}", "alembic_version"}
        await manager.dispose()
    await admin.execute("drop database second_one with (force)")
    await admin.close()


async def test_a_failing_migration_is_raised_and_the_next_sync_can_work(manager, project):
    project.add("c3", "b2", 'raise RuntimeError("half way")')
    with pytest.raises(RuntimeError, match="half way"):
        await manager.sync(create="migrations")
    (project.location / "versions" / "c3.py").unlink()
    assert await manager.sync() is SyncResult.ALREADY_UP_TO_DATE
    await manager.downgrade("base")


async def test_a_pool_of_one_connection_is_enough(project, database_url):
    manager = AsyncDatabaseManager(
        database_url,
        project.location,
        engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
        base_model=Base,
    )
    assert await manager.sync() is SyncResult.CREATED
    await manager.dispose()


async def test_the_version_table_may_live_in_another_schema(manager, project):
    env = project.location / "env.py"
    env.write_text(
        env.read_text().replace(
            "**where,", 'version_table="versions", version_table_schema="meta", **where,'
        )
    )
    await execute_all(manager.engine, "create schema meta")
    assert await manager.sync() is SyncResult.CREATED
    assert await manager.get_current_revision() == "b2"
    assert await tables(manager.engine) == {"shelves"}
    await manager.drop()
    async with manager.engine.connect() as connection:
        assert not await connection.run_sync(lambda c: inspect(c).has_table("versions", "meta"))


async def test_the_current_revision_can_be_read_through_a_session(manager):
    await manager.create()
    async with manager.Session() as session:
        assert await manager.get_current_revision(session) == "b2"
        assert session.in_transaction()


async def test_a_location_and_a_password_with_percent_signs_work(tmp_path, database_url):
    project = Project(tmp_path / "50%")
    project.add("a1", None, CREATE_SHELVES)
    url = database_url.replace("postgres@", "postgres:p%25w@")
    manager = AsyncDatabaseManager(url, project.location, base_model=Base)
    assert await manager.sync(create="migrations") is SyncResult.CREATED
    assert make_url(manager.alembic_cfg.get_main_option("sqlalchemy.url")) == make_url(url)
    await manager.dispose()


async def test_a_password_is_shown_nowhere(manager, project, database_url, caplog, capfd):
    url = database_url.replace("postgres@", "postgres:s3cret@") + "&password=s3cret"
    secretive = AsyncDatabaseManager(url, project.location, base_model=Base)
    with caplog.at_level(logging.DEBUG):
        await secretive.sync()
        await secretive.drop()
    shown = caplog.text + repr(secretive) + repr(secretive.engine) + "".join(capfd.readouterr())
    assert "s3cret" not in shown
    assert "***" in repr(secretive)
    assert secretive.engine.url.password == "s3cret"
    await secretive.dispose()


async def test_the_engine_is_made_with_the_callers_arguments_and_nothing_else(project, monkeypatch):
    made = []
    monkeypatch.setattr(
        "rowsignal.orm.manager.manager.create_async_engine", lambda **kwargs: made.append(kwargs)
    )
    monkeypatch.setattr("rowsignal.orm.manager.manager.async_sessionmaker", lambda *a, **k: None)
    engine_args = {"echo": True}
    AsyncDatabaseManager("postgresql://h/d", project.location, engine_args=engine_args)
    assert [set(kwargs) for kwargs in made] == [{"url", "echo"}]
    assert engine_args == {"echo": True}


async def test_creating_and_recording_is_one_transaction(manager, project):
    class Broken(DeclarativeBase):
        metadata = MetaData()

    Table("fine", Broken.metadata)
    Table("broken", Broken.metadata, schema="nowhere")
    manager._metadata = Broken.metadata
    with pytest.raises(DBAPIError, match="nowhere"):
        await manager.create()
    assert await tables(manager.engine) == set()
