"""The migration environment that is written for a new project."""

import asyncio
import logging
import os
import sys
from pathlib import Path

import pytest

from rowsignal.exceptions import MigrationError, MissingExtraError
from rowsignal.orm.manager.manager import AsyncDatabaseManager, DatabaseStatus
from rowsignal.orm.manager.migration_environment import create_migration_environment
from support.migration_projects import Project

MODELS = """
from sqlalchemy import MetaData
from sqlalchemy.orm import Mapped, mapped_column
from rowsignal.orm.models.base import Base

class Shelf(Base):
    __tablename__ = "shelves"
    metadata = MetaData()
    id: Mapped[int] = mapped_column(primary_key=True)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "shop_models.py").write_text(MODELS)
    return Project(tmp_path, metadata="shop_models:Shelf.metadata")


async def alembic(project: Project, url: str, *arguments: str) -> str:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "alembic",
        *arguments,
        cwd=project.folder,
        env={**os.environ, "DATABASE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode()


async def test_alembic_itself_runs_in_it_with_sync_and_async_urls(project, database_url):
    sync_url = database_url.replace("+asyncpg", "")
    await alembic(project, sync_url, "revision", "--autogenerate", "-m", "shelves")
    await alembic(project, database_url, "upgrade", "head")
    await alembic(project, sync_url, "check")
    manager = AsyncDatabaseManager(sync_url, project.location)
    assert await manager.get_status() is DatabaseStatus.UP_TO_DATE
    await manager.dispose()


async def test_it_writes_sql_without_a_database(project):
    project.add("a1", None, "op.execute(\"select '50%'\")")
    sql = await alembic(project, "postgresql://nowhere/d", "upgrade", "head", "--sql")
    assert "select '50%'" in sql
    assert sql.rstrip().endswith("COMMIT;")


async def test_the_programs_own_logging_survives_a_migration(project, database_url):
    (project.folder / "alembic.ini").rename(project.location / "alembic.ini")
    ours = logging.getLogger("rowsignal.orm.manager")
    before = (ours.disabled, ours.level, logging.root.level, list(logging.root.handlers))
    manager = AsyncDatabaseManager(database_url, project.location)
    await manager.upgrade()
    assert before == (ours.disabled, ours.level, logging.root.level, list(logging.root.handlers))
    await manager.dispose()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path):
    (tmp_path / "alembic.ini").write_text("mine")
    with pytest.raises(FileExistsError, match=r"alembic\.ini would be overwritten"):
        create_migration_environment(tmp_path / "migrations")
    assert [path.name for path in tmp_path.iterdir()] == ["alembic.ini"]


def test_it_says_what_it_wrote(tmp_path):
    written = create_migration_environment(tmp_path / "deep" / "migrations")
    assert {path.name for path in written} == {"env.py", "script.py.mako", "alembic.ini"}
    assert all(path.exists() for path in written)
    compile(written[0].read_text(), "env.py", "exec")


@pytest.mark.parametrize("metadata", ["shop.models", "shop:Base; import os", ":x", "a:b()"])
def test_metadata_of_another_form_is_refused(tmp_path, metadata):
    with pytest.raises(ValueError, match="module:name"):
        create_migration_environment(tmp_path / "migrations", metadata=metadata)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
async def test_an_env_py_that_ignores_the_connection_is_named(tmp_path, database_url):
    from importlib.resources import files

    template = files("alembic") / "templates" / "async" / "env.py"
    project = Project(tmp_path)
    (project.location / "env.py").write_text(template.read_text())
    manager = AsyncDatabaseManager(database_url, project.location)
    with pytest.raises(MigrationError, match=r'env\.py in .*attributes\["connection"\]'):
        await manager.upgrade()


async def test_without_alembic_the_engine_works_and_migrations_say_what_to_install(
    monkeypatch, database_url, tmp_path
):
    monkeypatch.delitem(sys.modules, "rowsignal.orm.manager.migrations", raising=False)
    monkeypatch.setitem(sys.modules, "alembic", None)
    manager = AsyncDatabaseManager(database_url, tmp_path)
    async with manager.engine.connect():
        pass
    with pytest.raises(MissingExtraError, match=r"pip install 'rowsignal\[alembic\]'"):
        await manager.sync()
    await manager.dispose()
