"""manager_from_config, make_db_session, syncdb: what an application does with its settings."""

import asyncio
import copy
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel, PostgresDsn, SecretStr
from sqlalchemy import func, make_url, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from typer.testing import CliRunner

from rowsignal.orm.manager.config import create_sync_command, manager_from_config, syncdb
from rowsignal.orm.manager.manager import AsyncDatabaseManager
from rowsignal.orm.manager.sessions import make_db_session
from support.migration_projects import Project

URL = "postgresql://ann:s3cret@db.example/shop"


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


def settings_for(url: Any, location: Path, **engine_args: Any) -> dict[str, Any]:
    return {
        "sqlalchemy": {"url": url, **engine_args},
        "alembic": {"migrations_path": location},
    }


@pytest.fixture
async def manager(database_url: str, tmp_path: Path):
    manager = AsyncDatabaseManager(
        database_url,
        tmp_path,
        base_model=Base,
        engine_args={"pool_size": 1, "max_overflow": 0, "pool_timeout": 1},
    )
    async with manager.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield manager
    await manager.dispose()


async def count(manager: AsyncDatabaseManager) -> int | None:
    async with manager.Session() as session:
        return await session.scalar(select(func.count()).select_from(Thing))


async def test_the_settings_are_left_as_they_were(tmp_path):
    settings = settings_for(URL, tmp_path, pool_size=3)
    before = copy.deepcopy(settings)
    manager_from_config(settings)
    assert settings == before


async def test_the_same_settings_give_the_same_manager_with_the_same_password(tmp_path):
    settings = settings_for(URL, tmp_path, pool_size=3)
    first, second = manager_from_config(settings), manager_from_config(copy.deepcopy(settings))
    assert first is second
    assert first.engine.url.password == "s3cret"
    assert first.engine.pool.size() == 3
    other = manager_from_config(settings_for(URL, tmp_path, pool_size=4))
    assert other is not first


def test_each_event_loop_has_a_manager_of_its_own(tmp_path):
    settings = settings_for(URL, tmp_path)

    async def make() -> AsyncDatabaseManager:
        return manager_from_config(settings)

    outside = manager_from_config(settings)
    managers = [asyncio.run(make()), asyncio.run(make()), outside]
    assert len(set(map(id, managers))) == 3


@pytest.mark.parametrize("kind", [str, SecretStr, PostgresDsn, make_url])
async def test_every_kind_of_url_keeps_its_password(kind, tmp_path):
    manager = manager_from_config(settings_for(kind(URL), tmp_path))
    assert manager.engine.url.password == "s3cret"
    assert "s3cret" in manager.alembic_cfg.get_main_option("sqlalchemy.url")


async def test_pydantic_settings_work_with_a_secret_url(tmp_path):
    class Engine(BaseModel):
        url: SecretStr
        pool_size: int = 7

    class Alembic(BaseModel):
        migrations_path: Path

    class Settings(BaseModel):
        sqlalchemy: Engine
        alembic: Alembic

    settings = Settings(
        sqlalchemy=Engine(url=SecretStr(URL)), alembic=Alembic(migrations_path=tmp_path)
    )
    manager = manager_from_config(settings)
    assert (manager.engine.url.password, manager.engine.pool.size()) == ("s3cret", 7)
    assert manager is manager_from_config(settings)


@pytest.mark.parametrize("settings", [{}, {"sqlalchemy": {}}, {"sqlalchemy": {"url": URL}}])
async def test_settings_that_lack_something_are_refused(settings):
    with pytest.raises(ValueError, match=r"lack .*migrations_path are needed"):
        manager_from_config(settings)


async def test_a_block_that_ends_well_is_committed(manager):
    async with make_db_session(manager) as session:
        session.add(Thing(id=1))
    assert await count(manager) == 1


async def test_a_block_that_fails_is_rolled_back(manager):
    async def run() -> None:
        async with make_db_session(manager) as session:
            session.add(Thing(id=1))
            await session.flush()
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await run()
    assert await count(manager) == 0


async def test_a_loop_that_ends_well_is_committed(manager):
    async for session in make_db_session(manager):
        session.add(Thing(id=1))
    assert await count(manager) == 1


async def test_a_loop_left_by_an_exception_gives_its_connection_back_at_once(manager):
    async def dependency():
        async for session in make_db_session(manager):
            yield session

    generator = dependency()
    session = await anext(generator)
    session.add(Thing(id=1))
    await session.flush()
    assert manager.engine.pool.checkedout() == 1
    with pytest.raises(RuntimeError, match="no"):
        await generator.athrow(RuntimeError("no"))
    assert manager.engine.pool.checkedout() == 0
    assert await count(manager) == 0


async def test_a_loop_whose_commit_fails_raises_and_closes(manager):
    async with manager.engine.begin() as connection:
        await connection.execute(
            text("alter table things add unique (id) deferrable initially deferred")
        )
    async with make_db_session(manager) as session:
        session.add(Thing(id=1))

    async def run() -> None:
        async for session in make_db_session(manager):
            await session.execute(text("alter table things drop constraint things_pkey"))
            await session.execute(text("insert into things values (1)"))

    with pytest.raises(IntegrityError):
        await run()
    assert manager.engine.pool.checkedout() == 0


async def test_a_session_is_handed_out_once(manager):
    block = make_db_session(manager)
    async with block:
        pass
    with pytest.raises(RuntimeError, match="make another one"):
        async with block:
            pass


async def test_closing_early_rolls_back(manager):
    sessions = make_db_session(manager)
    session = await anext(sessions)
    session.add(Thing(id=1))
    await session.flush()
    await sessions.aclose()
    assert await count(manager) == 0


async def test_syncdb_says_what_it_did(database_url, tmp_path, capsys):
    project = Project(tmp_path)
    project.add("a1", None, 'op.create_table("t", sa.Column("id", sa.Integer))')
    settings = settings_for(database_url, project.location)
    await syncdb(settings)
    await syncdb(settings)
    project.add("b2", "a1", 'op.execute("select 1")')
    await syncdb(settings)
    said = capsys.readouterr().out.splitlines()
    assert said == ["Database created.", "Database already up-to-date.", "Database upgraded."]


def test_the_sync_command_is_one_for_typer(tmp_path, database_url):
    project = Project(tmp_path)
    app = typer.Typer()
    app.command("syncdb")(create_sync_command(lambda: settings_for(database_url, project.location)))
    result = CliRunner().invoke(app)
    assert result.exit_code == 0, result.output
    assert "Database" in result.output
