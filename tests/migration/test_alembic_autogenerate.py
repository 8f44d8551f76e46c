"""Autogenerate: what it writes for each way in which models and triggers can differ."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import produce_migrations, render_python_code
from alembic.operations.ops import MigrationScript
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase

from rowsignal.orm.manager.manager import AsyncDatabaseManager
from rowsignal.triggers import install_triggers, trigger_status, watched
from support.migration_projects import Project

PLUGINS = ["alembic.autogenerate.*", "rowsignal"]
DEFINITIONS = """
select pg_get_triggerdef(t.oid) || ' ' || t.tgenabled::text
from pg_trigger t join pg_proc p on p.oid = t.tgfoid
where p.pronamespace = to_regnamespace('rowsignal')
order by 1
"""


def models(
    *columns: str, schema: str | None = None, name: str = "orders", **settings: Any
) -> MetaData:
    """Return the metadata of one table, declared as watched where settings are given."""

    class Base(DeclarativeBase):
        metadata = MetaData(schema=schema)

    class Order(Base):
        __tablename__ = name
        id = Column(Integer, primary_key=True)

    for column in columns or ("status",):
        setattr(Order, column, Column(String))
    if settings:
        watched(**settings)(Order)
    return Base.metadata


class Database:
    """A database with a migration project, driven by what autogenerate writes."""

    def __init__(self, manager: AsyncDatabaseManager, project: Project) -> None:
        self.manager = manager
        self.engine: AsyncEngine = manager.engine
        self.project = project
        self.revisions: list[str] = []

    async def compare(self, *metadata: MetaData, **options: Any) -> MigrationScript:
        """Run autogenerate, as `alembic revision --autogenerate` does."""

        def produce(connection: Connection) -> MigrationScript:
            opts = {"target_metadata": list(metadata), "autogenerate_plugins": PLUGINS, **options}
            context = MigrationContext.configure(connection, opts=opts)
            return produce_migrations(context, list(metadata))

        async with self.engine.connect() as connection:
            return await connection.run_sync(produce)

    async def lines(self, *metadata: MetaData, **options: Any) -> tuple[list[str], list[str]]:
        """Return the calls that upgrade and downgrade consist of."""
        script = await self.compare(*metadata, **options)
        return _calls(script.upgrade_ops), _calls(script.downgrade_ops)

    async def migrate(self, *metadata: MetaData, **options: Any) -> tuple[list[str], list[str]]:
        """Write what autogenerate finds into a revision and run it."""
        script = await self.compare(*metadata, **options)
        revision = f"r{len(self.revisions)}"
        self.project.add(
            revision,
            self.revisions[-1] if self.revisions else None,
            render_python_code(script.upgrade_ops),
            render_python_code(script.downgrade_ops),
        )
        self.revisions.append(revision)
        await self.manager.upgrade()
        return _calls(script.upgrade_ops), _calls(script.downgrade_ops)

    async def execute(self, *statements: str) -> None:
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.execute(text(statement))

    async def definitions(self) -> list[str]:
        async with self.engine.connect() as connection:
            return list(await connection.scalars(text(DEFINITIONS)))

    async def states(self, metadata: MetaData) -> list[str]:
        return [str(status.state) for status in await trigger_status(self.engine, metadata)]


def _calls(operations: Any) -> list[str]:
    code = render_python_code(operations)
    return [line.strip() for line in code.splitlines() if line.strip().startswith("op.")]


@pytest.fixture
async def database(tmp_path: Path, database_url: str) -> AsyncIterator[Database]:
    project = Project(tmp_path)
    manager = AsyncDatabaseManager(database_url, project.location)
    yield Database(manager, project)
    await manager.dispose()


INSTALL = "op.install_row_triggers('orders', columns=['status'], version=2)"
UNINSTALL = "op.uninstall_row_triggers('orders', columns=['status'], version=2)"


async def test_a_new_table_and_its_triggers_come_in_one_revision(database):
    declared = models(columns=["status"])
    upgrade, downgrade = await database.migrate(declared)
    assert upgrade[0].startswith("op.create_table('orders'")
    assert upgrade[1:] == [INSTALL]
    assert downgrade == [UNINSTALL, "op.drop_table('orders')"]
    assert await database.states(declared) == ["installed"]
    assert await database.lines(declared) == ([], [])
    await database.manager.downgrade("base")
    await database.manager.upgrade()
    assert await database.lines(declared) == ([], [])


async def test_declarations_are_not_written_into_create_table(database):
    script = await database.compare(models(log=True))
    assert "info=" not in render_python_code(script.upgrade_ops)


async def test_a_table_that_comes_to_be_watched_gets_its_triggers(database):
    await database.migrate(models())
    upgrade, downgrade = await database.migrate(models(columns=["status"]))
    assert (upgrade, downgrade) == ([INSTALL], [UNINSTALL])
    await database.manager.downgrade()
    assert await database.definitions() == []


async def test_changed_settings_replace_the_triggers_and_the_downgrade_restores_them(database):
    await database.migrate(models(columns=["status"]))
    before = await database.definitions()
    upgrade, downgrade = await database.migrate(models(log=True, exclude=["status"]))
    assert upgrade == ["op.install_row_triggers('orders', log=True, exclude=['status'], version=2)"]
    assert downgrade == [INSTALL]
    await database.manager.downgrade()
    assert await database.definitions() == before


@pytest.mark.parametrize(
    "damage",
    [
        "drop trigger rowsignal_hint on orders",
        "alter table orders disable trigger rowsignal_hint",
        "alter table orders disable trigger all",
        "drop trigger rowsignal_hint_truncate on orders",
        "alter trigger rowsignal_hint on orders rename to mine",
        """
        create or replace trigger rowsignal_hint after insert on orders for each row
        execute function rowsignal.capture_hint_v2('x', '1', '{}', 'id')
        """,
    ],
)
async def test_dropped_disabled_and_hand_edited_triggers_are_made_again(database, damage):
    declared = models(columns=["status"])
    await database.migrate(declared)
    before = await database.definitions()
    await database.execute(damage)
    upgrade, _ = await database.migrate(declared)
    assert upgrade == [INSTALL]
    assert await database.lines(declared) == ([], [])
    masked = [each.split("WHEN")[0] for each in await database.definitions()]
    assert masked == [each.split("WHEN")[0] for each in before]


async def test_a_function_that_was_edited_by_hand_is_restored_by_a_revision(database):
    declared = models(columns=["status"])
    await database.migrate(declared)
    await database.execute(
        """
        create or replace function rowsignal.capture_hint_v2() returns trigger
        language plpgsql as $$ begin return null; end $$
        """
    )
    upgrade, _ = await database.migrate(declared)
    assert upgrade == [INSTALL]
    assert await database.lines(declared) == ([], [])


async def test_a_disabled_triggers_downgrade_leaves_triggers_in_place(database):
    declared = models(columns=["status"])
    await database.migrate(declared)
    await database.execute("alter table orders disable trigger rowsignal_hint")
    _, downgrade = await database.migrate(declared)
    assert downgrade == [INSTALL]


async def test_triggers_of_an_older_form_are_replaced_and_restored_in_that_form(database):
    declared = models(columns=["status"])
    await database.migrate(declared)
    await database.execute(*OLDER_FORM)
    before = await database.definitions()
    assert "capture_hint_v0" in before[0]
    upgrade, downgrade = await database.migrate(declared)
    assert upgrade == [INSTALL]
    assert downgrade == [INSTALL.replace("version=2", "version=0")]
    await database.manager.downgrade()
    assert await database.definitions() == before


# what a database looks like that an earlier release has installed
OLDER_FORM = (
    """
    create function rowsignal.capture_hint_v0() returns trigger language plpgsql
    as $$ begin return null; end $$
    """,
    """
    create function rowsignal.install_v0(relation regclass, settings jsonb) returns void
    language plpgsql as $$ begin
        perform rowsignal.drop_triggers_v2(relation, '{}');
        execute format('create trigger rowsignal_hint after insert on %s for each row
            execute function rowsignal.capture_hint_v0(%L, %L, %L, %L)',
            relation, 'token', '1', settings, 'id');
    end $$
    """,
    """select rowsignal.install_v0('orders', '{"columns": ["status"]}')""",
)


async def test_triggers_that_no_model_asks_for_are_taken_away_and_can_come_back(database):
    await database.migrate(models(columns=["status"]))
    before = await database.definitions()
    upgrade, downgrade = await database.migrate(models())
    assert (upgrade, downgrade) == ([UNINSTALL], [INSTALL])
    assert await database.definitions() == []
    await database.manager.downgrade()
    assert len(await database.definitions()) == len(before)


async def test_a_dropped_tables_triggers_go_first_and_return_last(database):
    await database.migrate(models(columns=["status"]))
    upgrade, downgrade = await database.migrate(models(name="other"))
    assert upgrade[0] == UNINSTALL
    assert downgrade[-1] == INSTALL
    await database.manager.downgrade()
    assert len(await database.definitions()) == 2


async def test_a_watched_column_can_be_exchanged_in_one_revision_and_back(database):
    await database.migrate(models("status", columns=["status"]))
    before = await database.definitions()
    declared = models("state", columns=["state"])
    upgrade, downgrade = await database.migrate(declared)
    assert upgrade[0] == UNINSTALL
    assert upgrade[-1] == INSTALL.replace("status", "state")
    assert downgrade[-1] == INSTALL
    assert await database.lines(declared) == ([], [])
    await database.manager.downgrade()
    assert len(await database.definitions()) == len(before)
    assert await database.lines(models("status", columns=["status"])) == ([], [])


async def test_a_logged_table_that_gets_a_column_keeps_its_triggers_up_to_date(database):
    await database.migrate(models("status", log=True))
    declared = models("status", "note", log=True)
    await database.migrate(declared)
    assert await database.lines(declared) == ([], [])
    await database.manager.downgrade()
    assert await database.lines(models("status", log=True)) == ([], [])


async def test_a_hinted_table_that_gets_a_column_is_left_alone(database):
    await database.migrate(models("status", always=True))
    upgrade, _ = await database.migrate(models("status", "note", always=True))
    assert upgrade == ["op.add_column('orders', sa.Column('note', sa.String(), nullable=True))"]


@pytest.mark.parametrize("schema", ["Sales Dept", "public"])
async def test_tables_of_other_schemas_are_compared_and_ours_is_left_alone(database, schema):
    await database.execute(f'create schema if not exists "{schema}"')
    declared = models(schema=schema, log=True)
    upgrade, downgrade = await database.migrate(declared, include_schemas=True)
    call = f"('orders', schema='{schema}', log=True, version=2)"
    assert upgrade[-1] == f"op.install_row_triggers{call}"
    assert downgrade[0] == f"op.uninstall_row_triggers{call}"
    assert await database.lines(declared, include_schemas=True) == ([], [])
    gone, _ = await database.lines(models(schema=schema), include_schemas=True)
    assert len(gone) == 1
    assert "rowsignal.change" not in "".join(gone)


async def test_several_metadata_are_compared_together(database):
    both = models(columns=["status"]), models(name="items", log=True)
    upgrade, _ = await database.migrate(*both)
    assert [line for line in upgrade if "row_triggers" in line] == [
        INSTALL,
        "op.install_row_triggers('items', log=True, version=2)",
    ]
    assert await database.lines(*both) == ([], [])


async def test_batch_rendering_leaves_trigger_operations_as_they_are(database):
    await database.migrate(models("status", columns=["status"]))
    script = await database.compare(
        models("status", "note", columns=["note"]), render_as_batch=True
    )
    code = render_python_code(script.upgrade_ops, render_as_batch=True)
    assert "with op.batch_alter_table('orders'" in code
    assert "\nop.install_row_triggers('orders', columns=['note'], version=2)" in code.replace(
        "    ", ""
    )
    await database.migrate(models("status", "note", columns=["note"]), render_as_batch=True)


def excluding(*names: str) -> dict[str, Callable[..., bool]]:
    return {"include_object": lambda _object, name, *_: name not in names}


async def test_what_the_environment_excludes_is_neither_installed_nor_taken_away(database):
    await database.migrate(models())
    assert await database.lines(models(log=True), **excluding("orders")) == ([], [])
    await install_triggers(database.engine, models(log=True))
    assert await database.lines(models(), **excluding("orders")) == ([], [])
    only_names = {"include_name": lambda name, kind, _: kind != "table" or name != "orders"}
    upgrade, _ = await database.lines(models(name="other"), **only_names)
    assert not [line for line in upgrade if "row_triggers" in line]


async def test_without_the_plugin_nothing_is_compared(database):
    await database.migrate(models())
    plain = {"autogenerate_plugins": ["alembic.autogenerate.*"]}
    assert await database.lines(models(log=True), **plain) == ([], [])


async def test_a_partitioned_table_and_its_later_partitions_are_compared_as_one(database):
    await database.execute(
        "create table parts (id int primary key) partition by range (id)",
        "create table parts_1 partition of parts for values from (1) to (10)",
    )
    metadata = models(name="parts", always=True)
    excluded = excluding("parts_1", "parts_2", "status")
    upgrade, _ = await database.migrate(metadata, **excluded)
    assert upgrade == ["op.install_row_triggers('parts', always=True, version=2)"]
    await database.execute("create table parts_2 partition of parts for values from (10) to (20)")
    upgrade, _ = await database.migrate(metadata, **excluded)
    assert upgrade == ["op.install_row_triggers('parts', always=True, version=2)"]
    assert await database.lines(metadata, **excluded) == ([], [])


def test_a_plain_table_can_be_named_like_a_keyword_or_worse():
    from rowsignal.alembic_plugin.operations import InstallRowTriggersOp
    from rowsignal.triggers.settings import TriggerSettings

    table = Table('select "x"; --', MetaData())
    operation = InstallRowTriggersOp(table.name, None, TriggerSettings(), 1)
    assert operation.qualified_name == '"select ""x""; --"'
