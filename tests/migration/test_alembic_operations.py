"""op.install_row_triggers and op.uninstall_row_triggers: online, as SQL text, and as source."""

import asyncio
import io
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import render_python_code
from alembic.config import Config
from alembic.operations import Operations
from alembic.operations.ops import UpgradeOps
from alembic.runtime.migration import MigrationContext
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.alembic_plugin.operations import (
    VERSION,
    InstallRowTriggersOp,
    UninstallRowTriggersOp,
)
from rowsignal.embedded.programs import find_bin_dir
from rowsignal.exceptions import LockTimeoutError, TriggerInstallError
from rowsignal.orm.manager.manager import AsyncDatabaseManager
from rowsignal.postgres import statements
from rowsignal.triggers.settings import TriggerSettings
from support.migration_projects import Project

TRIGGERS = """
select t.tgrelid::regclass::text, t.tgname, pg_get_triggerdef(t.oid)
from pg_trigger t join pg_proc p on p.oid = t.tgfoid
where p.pronamespace = to_regnamespace('rowsignal')
order by 1, 2
"""

digits = re.compile(r"\d+")

CREATE_ORDERS = """
op.create_table(
    "orders",
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("status", sa.String),
    sa.Column("note", sa.String),
)
"""
CREATE_MIXED_CASE = """
op.execute('create schema "Sales"')
op.create_table(
    'Order "Lines"', sa.Column("Id", sa.Integer, primary_key=True), schema="Sales"
)
"""
DROP_MIXED_CASE = """
op.drop_table('Order "Lines"', schema="Sales")
op.execute('drop schema "Sales"')
"""


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    project.add("a1", None, CREATE_ORDERS, 'op.drop_table("orders")')
    project.add(
        "b2",
        "a1",
        'op.install_row_triggers("orders", version=2)',
        'op.uninstall_row_triggers("orders", version=2)',
    )
    project.add(
        "c3",
        "b2",
        'op.install_row_triggers("orders", columns=["status"], version=2)',
        'op.install_row_triggers("orders", version=2)',
    )
    project.add("d4", "c3", CREATE_MIXED_CASE, DROP_MIXED_CASE)
    mixed = """'Order "Lines"', schema="Sales", always=True, version=2"""
    project.add(
        "e5", "d4", f"op.install_row_triggers({mixed})", f"op.uninstall_row_triggers({mixed})"
    )
    return project


@pytest.fixture
async def manager(project: Project, database_url: str) -> AsyncIterator[AsyncDatabaseManager]:
    manager = AsyncDatabaseManager(database_url, project.location)
    yield manager
    await manager.dispose()


async def triggers(engine: AsyncEngine) -> list[tuple[str, str, str]]:
    async with engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(TRIGGERS))]


async def test_each_revision_goes_up_and_exactly_down_again(manager):
    seen = {}
    for revision in ("a1", "b2", "c3", "d4", "e5"):
        await manager.upgrade(revision)
        seen[revision] = await triggers(manager.engine)
    assert seen["a1"] == []
    assert {name for name, _, _ in seen["b2"]} == {"orders"}
    assert seen["c3"] != seen["b2"]
    assert len({table for table, _, _ in seen["e5"]}) == 2
    for revision in ("d4", "c3", "b2", "a1"):
        await manager.downgrade(revision)
        assert await triggers(manager.engine) == seen[revision]


async def test_installing_needs_nothing_but_the_table(manager):
    await manager.upgrade("b2")
    async with manager.engine.begin() as connection:
        await connection.execute(text("insert into orders (status) values ('new')"))


async def test_uninstalling_what_is_not_there_is_no_error(manager, project):
    await manager.upgrade("a1")
    project.add("z9", "a1", 'op.uninstall_row_triggers("orders")')
    await manager.upgrade("z9")


async def test_a_table_without_a_primary_key_is_refused_with_a_sentence(manager, project):
    project.add(
        "z9",
        "a1",
        """
        op.create_table("keyless", sa.Column("id", sa.Integer))
        op.install_row_triggers("keyless")
        """,
    )
    with pytest.raises(TriggerInstallError, match="no primary key"):
        await manager.upgrade("z9")


async def test_a_busy_table_makes_the_migration_fail_clearly_instead_of_queueing_all(
    manager, project
):
    await manager.upgrade("a1")
    project.add("z9", "a1", 'op.install_row_triggers("orders", lock_timeout=0.05)')
    async with manager.engine.begin() as connection:
        await connection.execute(text("lock table orders in row exclusive mode"))
        with pytest.raises(LockTimeoutError, match="not free within"):
            await manager.upgrade("z9")
    await manager.upgrade("z9")


def test_new_revisions_ask_for_the_newest_form_of_the_triggers():
    forms = re.findall(r"function rowsignal\.install_v(\d+)", statements.read("triggers.sql"))
    assert max(map(int, forms)) == VERSION


def test_settings_that_contradict_each_other_are_refused_in_the_migration():
    operations = Operations(MigrationContext.configure(dialect_name="postgresql"))
    with pytest.raises(ValueError, match="contradict"):
        operations.install_row_triggers("orders", columns=["a"], exclude=["b"])
    with pytest.raises(TypeError, match="not the string"):
        operations.install_row_triggers("orders", columns="status")


def script(project: Project, revisions: str, url: str) -> str:
    """Return the SQL of a range of revisions, made without a database."""
    config = Config(output_buffer=io.StringIO())
    config.set_main_option("script_location", str(project.location))
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    run = command.upgrade if not revisions.endswith(":base") else command.downgrade
    run(config, revisions, sql=True)
    return config.output_buffer.getvalue()


async def run_with_psql(sql: str, database_url: str) -> None:
    def run() -> subprocess.CompletedProcess[str]:
        dsn = database_url.replace("+asyncpg", "")
        return subprocess.run(
            [find_bin_dir() / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", dsn],
            input=sql,
            check=False,
            text=True,
            capture_output=True,
        )

    outcome = await asyncio.to_thread(run)
    assert outcome.returncode == 0, outcome.stderr


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_the_whole_history_runs_as_a_script_up_and_down(
    project, manager, database_url, driver
):
    offline_url = f"postgresql+{driver}://nowhere/nothing"
    await run_with_psql(script(project, "head", offline_url), database_url)
    by_script = await triggers(manager.engine)
    await run_with_psql(script(project, "e5:base", offline_url), database_url)
    assert await triggers(manager.engine) == []
    await manager.upgrade()
    online = await triggers(manager.engine)
    # a table's oid is in its name for hints, and decides on its lock
    assert [digits.sub("0", row[2]) for row in by_script] == [
        digits.sub("0", row[2]) for row in online
    ]
    assert len(online) == len(by_script) > 2


async def test_a_script_makes_the_schema_once_and_minds_no_schema_that_is_there(
    project, manager, database_url
):
    sql = script(project, "head", database_url)
    assert sql.count("create schema rowsignal;") == 1
    await manager.upgrade("b2")
    await run_with_psql(script(project, "b2:e5", database_url), database_url)
    assert len({table for table, _, _ in await triggers(manager.engine)}) == 2


def rendered(*operations: InstallRowTriggersOp | UninstallRowTriggersOp, batch: bool) -> str:
    return render_python_code(UpgradeOps(list(operations)), render_as_batch=batch)


@pytest.mark.parametrize("batch", [False, True])
def test_operations_render_as_calls_with_every_argument_frozen(batch):
    settings = TriggerSettings(columns=("status",), log=True, notify=False)
    install = InstallRowTriggersOp("orders", "sales", settings, 2)
    call = "orders', schema='sales', log=True, columns=['status'], notify=False, version=2)"
    assert f"op.install_row_triggers('{call}" in rendered(install, batch=batch)
    assert f"op.uninstall_row_triggers('{call}" in rendered(install.reverse(), batch=batch)
    assert "orders', version=2)" in rendered(
        UninstallRowTriggersOp("orders", None, TriggerSettings(), 2), batch=batch
    )


def test_reversing_twice_is_the_same_operation():
    install = InstallRowTriggersOp("orders", None, TriggerSettings(log=True), VERSION)
    install.previous = InstallRowTriggersOp("orders", None, TriggerSettings(always=True), VERSION)
    back = install.reverse()
    assert isinstance(back, InstallRowTriggersOp)
    assert back.settings == TriggerSettings(always=True)
    assert back.reverse().settings == TriggerSettings(log=True)
    assert (
        UninstallRowTriggersOp("orders", None, TriggerSettings(), 2).reverse().reverse().table_name
        == "orders"
    )


@pytest.mark.parametrize(
    "module",
    ["alembic", "alembic.config", "alembic.autogenerate.api"],
)
def test_the_operations_are_there_whichever_part_of_alembic_comes_first(module):
    program = f"import {module}\nfrom alembic import op\nop.install_row_triggers"
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True)
