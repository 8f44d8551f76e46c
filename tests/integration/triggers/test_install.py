"""Installing: every bind, every refusal, every state."""

import asyncio
import io
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from rowsignal.exceptions import LockTimeoutError, TriggerInstallError
from rowsignal.triggers import (
    TableAction,
    install_on_create,
    install_script,
    install_triggers,
    trigger_status,
    uninstall_triggers,
    watched,
)
from support.hint_listener import connected, listening


class Base(DeclarativeBase):
    """Models of which nothing is declared."""


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    state: Mapped[str | None] = mapped_column("status")
    secret: Mapped[str | None]


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncEngine:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return engine


@pytest.fixture
def sync_engine(shop: AsyncEngine) -> Iterator[Engine]:
    engine = create_engine(shop.url.set(drivername="postgresql+psycopg"))
    yield engine
    engine.dispose()


async def states(engine: AsyncEngine, what: Any = Base, **settings: Any) -> dict[str, str]:
    found = await trigger_status(engine, what, **settings)
    return {status.table: str(status.state) for status in found}


async def test_an_async_engine_commits_for_itself(shop: AsyncEngine) -> None:
    assert await states(shop) == {"items": "missing", "orders": "missing"}
    done = await install_triggers(shop, Base)
    assert done == [TableAction(None, name, "installed") for name in ("items", "orders")]
    assert await states(shop) == {"items": "installed", "orders": "installed"}
    again = await install_triggers(shop, Base)
    assert {action.action for action in again} == {"unchanged"}
    gone = await uninstall_triggers(shop, Base)
    assert {action.action for action in gone} == {"removed"}
    assert await states(shop) == {"items": "missing", "orders": "missing"}


async def test_async_connections_and_sessions_leave_the_commit_to_the_caller(
    shop: AsyncEngine,
) -> None:
    async with shop.connect() as connection:
        await install_triggers(connection, Order)
        await connection.rollback()
    assert await states(shop, Order) == {"orders": "missing"}
    async with AsyncSession(shop) as session:
        await install_triggers(session, [Order, Item.__table__])
        await session.commit()
    assert await states(shop) == {"items": "installed", "orders": "installed"}


async def test_plain_engines_connections_and_sessions_work_without_await(
    shop: AsyncEngine, sync_engine: Engine
) -> None:
    assert install_triggers(sync_engine, Order) == [TableAction(None, "orders", "installed")]
    with sync_engine.connect() as connection:
        install_triggers(connection, Item)
        connection.rollback()
    assert await states(shop) == {"items": "missing", "orders": "installed"}
    with Session(sync_engine) as session:
        uninstall_triggers(session, Base.metadata)
        session.commit()
    assert [str(status.state) for status in trigger_status(sync_engine, Order)] == ["missing"]


async def test_an_offline_migration_writes_a_complete_script(shop: AsyncEngine) -> None:
    script = io.StringIO()
    options = {"as_sql": True, "output_buffer": script}
    context = MigrationContext.configure(dialect_name="postgresql", opts=options)
    install_triggers(Operations(context).get_bind(), Order, columns=["state"])
    async with connected(shop) as psql:
        await psql.execute(script.getvalue())
        assert await states(shop, Order, columns=["state"]) == {"orders": "installed"}
        uninstall_triggers(Operations(context).get_bind(), Order)
        await psql.execute(script.getvalue())
    assert await states(shop, Order) == {"orders": "missing"}


async def test_the_script_of_a_dry_run_installs(shop: AsyncEngine) -> None:
    async with connected(shop) as psql:
        await psql.execute(install_script(Base, log=True))
        await psql.execute(install_script(Base, log=True))
    assert await states(shop, log=True) == {"items": "installed", "orders": "installed"}


async def test_twelve_at_once_install_once(shop: AsyncEngine) -> None:
    engines = [create_async_engine(shop.url) for _ in range(12)]
    done = await asyncio.gather(*(install_triggers(engine, Order) for engine in engines))
    assert sorted(actions[0].action for actions in done) == ["installed"] + ["unchanged"] * 11
    for engine in engines:
        await engine.dispose()


REFUSALS = {
    "CREATE TABLE t (id int)": "primary key",
    "CREATE VIEW t AS SELECT 1 AS id": "view",
    "CREATE MATERIALIZED VIEW t AS SELECT 1 AS id": "materialized view",
    "CREATE TABLE r (id int PRIMARY KEY) PARTITION BY LIST (id);"
    "CREATE TABLE t PARTITION OF r DEFAULT": "partition",
    "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;"
    "CREATE FOREIGN TABLE t (id int) SERVER s": "foreign table",
    "SELECT 1": "does not exist",
    "CREATE TABLE t (id int PRIMARY KEY);"
    "REVOKE EXECUTE ON FUNCTION pg_try_advisory_lock(int, int) FROM PUBLIC": "GRANT EXECUTE",
}


@pytest.mark.parametrize("setting", REFUSALS)
async def test_what_can_not_carry_triggers_is_refused(engine: AsyncEngine, setting: str) -> None:
    async with connected(engine) as owner:
        await owner.execute(setting)
    async with engine.connect() as connection:
        with pytest.raises(TriggerInstallError, match=REFUSALS[setting]):
            await install_triggers(connection, "t")
        # the caller's transaction goes on
        assert await connection.scalar(text("SELECT 1")) == 1


async def test_unknown_columns_and_pointless_settings_are_refused(shop: AsyncEngine) -> None:
    with pytest.raises(ValueError, match="Order has no column 'status'; it has id, state, secret"):
        await install_triggers(shop, Order, columns=["status"])
    with pytest.raises(TriggerInstallError, match="stores no column nothing"):
        await install_triggers(shop, "orders", columns=["nothing"])
    for settings in (
        {"notify": False},
        {"row_values": True},
        {"filter_columns": ["state"]},
        {"log": True, "always": True},
        {"columns": ["state"], "exclude": ["state"]},
        {"columns": []},
    ):
        with pytest.raises(ValueError, match=r"\."):
            await install_triggers(shop, Order, **settings)


async def test_a_busy_table_fails_soon_and_clearly(shop: AsyncEngine) -> None:
    async with connected(shop) as writer:
        await writer.execute("BEGIN; INSERT INTO orders VALUES (1)")
        with pytest.raises(LockTimeoutError, match=r"not free within 0\.1 s"):
            await install_triggers(shop, Order, lock_timeout=0.1)
        await writer.execute("ROLLBACK")
    async with shop.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        await install_triggers(connection, Order, lock_timeout=1)
        assert await connection.scalar(text("SHOW lock_timeout")) == "7s"


async def test_what_is_right_is_not_locked(shop: AsyncEngine) -> None:
    await install_triggers(shop, Base)
    async with connected(shop) as writer:
        await writer.execute("BEGIN; INSERT INTO orders VALUES (1)")
        await install_triggers(shop, Base, lock_timeout=0.1)


DRIFTS = {
    "ALTER TABLE orders DISABLE TRIGGER rowsignal_hint": "disabled",
    "ALTER TABLE orders DISABLE TRIGGER ALL": "disabled",
    "ALTER TABLE orders ENABLE ALWAYS TRIGGER rowsignal_hint": "installed",
    "DROP TRIGGER rowsignal_hint_truncate ON orders": "drifted",
    "CREATE OR REPLACE TRIGGER rowsignal_hint AFTER INSERT ON orders FOR EACH ROW"
    " EXECUTE FUNCTION rowsignal.capture_hint_v2('t', '1', '{}', 'id')": "drifted",
    "CREATE OR REPLACE FUNCTION rowsignal.capture_hint_v2() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NULL; END'": "drifted",
    "ALTER TABLE orders RENAME id TO number": "drifted",
    "ALTER TABLE orders RENAME TO elsewhere; CREATE TABLE orders (id int PRIMARY KEY)": "missing",
    "DROP TABLE orders": "missing",
}


@pytest.mark.parametrize("change", DRIFTS)
async def test_changed_triggers_are_reported_and_fixed(shop: AsyncEngine, change: str) -> None:
    await install_triggers(shop, Order)
    async with connected(shop) as owner:
        await owner.execute(change)
    assert await states(shop, Order) == {"orders": DRIFTS[change]}
    if DRIFTS[change] == "drifted" and "FUNCTION rowsignal.capture" not in change:
        await install_triggers(shop, Order)
        assert await states(shop, Order) == {"orders": "installed"}


async def test_a_changed_function_is_fixed(shop: AsyncEngine) -> None:
    await install_triggers(shop, Order)
    broken = "AS 'BEGIN RETURN NULL; END'"
    async with connected(shop) as owner:
        await owner.execute(
            "CREATE OR REPLACE FUNCTION rowsignal.capture_hint_v2() RETURNS trigger"
            f" LANGUAGE plpgsql {broken}"
        )
    await install_triggers(shop, Order)
    assert await states(shop, Order) == {"orders": "installed"}


async def test_other_settings_are_outdated_and_change_in_both_directions(
    shop: AsyncEngine,
) -> None:
    await install_triggers(shop, Order)
    async with connected(shop) as writer:
        for settings in ({"columns": [Order.state]}, {"log": True}, {"always": True}):
            assert await states(shop, Order, **settings) == {"orders": "outdated"}
            (action,) = await install_triggers(shop, Order, **settings)
            assert action.action == "replaced"
            assert await states(shop, Order, **settings) == {"orders": "installed"}
        names = await writer.fetch("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
        assert {row["tgname"] for row in names} == {"rowsignal_hint", "rowsignal_hint_truncate"}
        made = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'capture_log_update%'"
        assert await writer.fetchval(made) == 0


async def test_the_token_survives_renames_and_reinstallation(shop: AsyncEngine) -> None:
    await install_triggers(shop, Order)
    tokens = "SELECT DISTINCT split_part(encode(tgargs, 'escape'), '\\000', 1) FROM pg_trigger"
    async with connected(shop) as owner:
        (before,) = await owner.fetch(f"{tokens} WHERE tgname ~ 'rowsignal'")
        await owner.execute("ALTER TABLE orders RENAME TO purchases")
        assert await states(shop, "purchases") == {"purchases": "installed"}
        await install_triggers(shop, "purchases", always=True)
        assert await owner.fetch(f"{tokens} WHERE tgname ~ 'rowsignal'") == [before]


async def test_tables_without_a_model_are_orphans(shop: AsyncEngine) -> None:
    await install_triggers(shop, ["orders", "items"])
    other = MetaData()
    Table("orders", other, Column("id", Integer, primary_key=True))
    assert await states(shop, other) == {"orders": "installed", "items": "orphaned"}
    assert await states(shop, None) == {"orders": "installed", "items": "installed"}
    await uninstall_triggers(shop, None)
    assert await states(shop, None) == {}


async def test_declared_models_are_installed_as_declared(engine: AsyncEngine) -> None:
    class Declared(DeclarativeBase):
        pass

    @watched(log=True, exclude=["secret"], row_values=True)
    class Account(Declared):
        __tablename__ = "accounts"
        id: Mapped[int] = mapped_column(primary_key=True)
        secret: Mapped[str] = mapped_column("hidden")

    class Plain(Declared):
        __tablename__ = "plain"
        id: Mapped[int] = mapped_column(primary_key=True)

    install_on_create(Declared.metadata)
    async with engine.begin() as connection:
        await connection.run_sync(Declared.metadata.create_all)
    assert await states(engine, Declared) == {"accounts": "installed"}
    assert "rowsignal" not in Account.__table__.info
    async with connected(engine) as writer:
        await writer.execute(
            "INSERT INTO accounts VALUES (1, 'x'); UPDATE accounts SET hidden = 'y'"
        )
        rows = await writer.fetch("SELECT operation::text, new_row FROM rowsignal.change")
        assert [tuple(row) for row in rows] == [("i", '{"id": 1}')]


async def test_schemas_are_translated(engine: AsyncEngine) -> None:
    async with connected(engine) as owner:
        await owner.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.orders (id int PRIMARY KEY)")
    translated = engine.execution_options(schema_translate_map={None: "tenant"})
    await install_triggers(translated, Order)
    assert await states(engine, "tenant.orders") == {"orders": "installed"}
    async with listening(engine, "tenant.orders") as hint_listener, connected(engine) as writer:
        await writer.execute("INSERT INTO tenant.orders VALUES (1)")
        assert await hint_listener.said() == [("insert", [1], None)]
