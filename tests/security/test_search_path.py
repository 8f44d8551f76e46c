"""Functions and operators in another role's schema on the search path are never called."""

from functools import partial
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import grant, prune, revoke
from rowsignal.doctor import diagnose
from rowsignal.triggers import install_triggers, trigger_status, uninstall_triggers
from support.roles import TRAP, Ground
from support.shop import Base, Customer, Order

# Reading the log is left out: asyncpg itself asks about the types of arrays by the search path.
#
# An operator or function that fits the types of a call exactly is preferred to PostgreSQL's own
# that fits after a conversion (PostgreSQL manual, 10.2 and 10.3).
TRAPS = Path(__file__).with_name("traps.sql").read_text()


async def trapped(ground: Ground, role: str) -> AsyncEngine:
    """Return an engine of a role that finds the attacker's schema on its search path."""
    return ground.engine(role, connect_args={"server_settings": {"search_path": "public, mallory"}})


@pytest.mark.timeout(180)
async def test_no_command_calls_what_is_on_the_search_path(ground: Ground) -> None:
    await ground.attacker.execute(TRAP)
    await ground.attacker.execute(TRAPS)
    await ground.sql.execute(f"grant create, usage on schema public to {ground.installer_role}")
    installer = await trapped(ground, ground.installer_role)
    async with installer.begin() as connection:
        # Not to ask whether they exist: that query is SQLAlchemy's own.
        await connection.run_sync(partial(Base.metadata.create_all, checkfirst=False))
    await install_triggers(installer, Order, log=True, row_values=True)
    await install_triggers(installer, Customer)
    await grant(installer, ground.bystander_role, serve=True, tables=Base)
    await trigger_status(installer, Base)
    await diagnose(installer, Base, role=ground.bystander_role)
    await diagnose(installer)
    await prune(installer)
    await revoke(installer, ground.bystander_role, tables=Base)
    await uninstall_triggers(installer, None)
    await installer.dispose()
    assert await ground.seen() == set()


SETTINGS = {
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    "transform_null_equals": "on",
    "array_nulls": "off",
    "plpgsql.extra_errors": "all",
    "backslash_quote": "off",
    "datestyle": "German",
    "intervalstyle": "sql_standard",
    "timezone": "Asia/Kathmandu",
    "bytea_output": "escape",
    "extra_float_digits": "-5",
    "row_security": "off",
    "default_transaction_isolation": "serializable",
    "check_function_bodies": "off",
    "escape_string_warning": "off",
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_settings_of_a_session_change_neither_triggers_nor_status(
    ground: Ground, name: str
) -> None:
    options = {"server_settings": {name: SETTINGS[name]}}
    installer = ground.engine(ground.installer_role, connect_args=options)
    columns = 'id int primary key, at timestamptz, "a\\b\'c" text, f float8, b bytea, n interval'
    values = "'2020-02-03 04:05:06Z', 'x', 0.1, '\\x00ff', '1 day 2 hours'"
    logged, keys = [], []
    for table in ("plain", "odd"):
        await ground.attacker.execute(f"create table mallory.{table} ({columns})")
        engine = ground.installer if table == "plain" else installer
        await install_triggers(engine, f"mallory.{table}", log=True, row_values=True)
        writer = ground.attacker
        if table == "odd":
            odd = ground.engine(ground.attacker_role, connect_args=options)
            async with odd.begin() as connection:
                escaped = values.replace("\\", "\\\\") if name.startswith("standard") else values
                await connection.exec_driver_sql(f"insert into mallory.odd values (1, {escaped})")
                await connection.exec_driver_sql("update mallory.odd set id = 2")
        else:
            await writer.execute(
                f"insert into mallory.plain values (1, {values}); update mallory.plain set id = 2"
            )
        rows = await ground.sql.fetch(
            "select operation, key, changed, old_row, new_row from rowsignal.change"
            f" where relation = 'mallory.{table}'::regclass order by id"
        )
        logged.append([tuple(row) for row in rows])
        keys.append([row["key"] for row in rows])
    assert logged[0] == logged[1]
    assert keys[1] == ['{"id": 1}', '{"id": 1}', '{"id": 2}']
    assert [one for one in await trigger_status(installer) if one.problem] == []
    assert {one.state for one in await trigger_status(ground.installer)} == {"installed"}
