"""A schema `rowsignal` that another role made, or has a hand in, is refused and not run."""

from contextlib import suppress

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.doctor import diagnose
from rowsignal.exceptions import MissingRightError, SchemaOwnerError
from rowsignal.postgres import schema
from rowsignal.triggers import (
    install_script,
    install_triggers,
    trigger_status,
    uninstall_triggers,
)
from support.roles import TRAP, Ground, open_ground

FAKE = """
    create schema rowsignal;
    grant all on schema rowsignal to public;
    create table rowsignal.migration (version int, name text, applied_at timestamptz);
    insert into rowsignal.migration select g, 'x', now() from generate_series(1, {version}) as g;
    create function rowsignal.open_functions_v1() returns setof regprocedure language plpgsql as
        'begin perform mallory.trap(); return; end';
    create function rowsignal.install_v2(regclass, jsonb) returns text language plpgsql as
        'begin perform mallory.trap(); return 1; end';
    create function rowsignal.uninstall_v2(regclass) returns bigint language plpgsql as
        'begin perform mallory.trap(); return 1; end';
    create function rowsignal.close_v1() returns void language plpgsql as
        'begin perform mallory.trap(); end';
    create function rowsignal.capture_hint_v2() returns trigger language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create table rowsignal.change (id int);
    create view rowsignal.retention as
        select mallory.trap() as trap, interval '1 day' as max_age, 1 as max_bytes;
    create table mallory.bait (id int primary key);
    create trigger rowsignal_hint after insert on mallory.bait for each row
        execute function rowsignal.capture_hint_v2('t', '1', '{{"log": true}}', 'id');
"""


def grant_create(role: str) -> str:
    """Return the statement that lets a role create schemas in the current database."""
    command = f"format('grant create on database %I to {role}', current_database())"
    return f"do $$begin execute {command}; end$$"


async def fake(ground: Ground, more: str = "") -> None:
    await ground.sql.execute(grant_create(ground.attacker_role))
    await ground.attacker.execute(TRAP + FAKE.format(version=schema.CURRENT) + more)
    await ground.sql.execute("create table tenant.orders (id int primary key)")


VARIANTS = {
    "all objects": "",
    "a view for a table": """
        drop table rowsignal.migration;
        create view rowsignal.migration as select 4 as version, mallory.trap() as name;""",
    "a type with a cast": """
        create type mallory.number as (n int);
        create function mallory.int(mallory.number) returns int language plpgsql as
            'begin perform mallory.trap(); return 4; end';
        create cast (mallory.number as int) with function mallory.int(mallory.number) as implicit;
        alter table rowsignal.migration alter version type mallory.number using null;""",
    "a policy": """
        create function mallory.allow() returns bool language plpgsql as
            'begin perform mallory.trap(); return true; end';
        alter table rowsignal.migration enable row level security;
        create policy p on rowsignal.migration using (mallory.allow());
        grant select on rowsignal.migration to public;""",
}


@pytest.mark.parametrize("variant", VARIANTS)
async def test_a_schema_made_beforehand_is_refused_by_every_command(
    ground: Ground, variant: str
) -> None:
    await fake(ground, VARIANTS[variant])
    with pytest.raises(SchemaOwnerError, match=ground.attacker_role):
        await install_triggers(ground.installer, "tenant.orders", log=True)
    with pytest.raises(SchemaOwnerError, match=ground.attacker_role):
        await uninstall_triggers(ground.installer, None)
    with pytest.raises(SchemaOwnerError, match=ground.attacker_role):
        async with ground.installer.begin() as connection:
            await connection.run_sync(schema.migrate)
    for asked in (
        schema.schema_status(ground.installer),
        trigger_status(ground.installer, "tenant.orders"),
    ):
        with suppress(MissingRightError):
            await asked
    await diagnose(ground.installer)
    assert await ground.seen() == set()


async def test_the_offline_script_refuses_the_schema_of_another_role(ground: Ground) -> None:
    await fake(ground)
    owner = await ground.connect(ground.installer_role)
    with pytest.raises(asyncpg.PostgresError, match="not safe to use"):
        await owner.execute(install_script("tenant.orders"))
    assert await ground.seen() == set()


INTRUSIONS = {
    "a table": "create table rowsignal.mine (id int)",
    "a view": "create view rowsignal.mine as select 1",
    "a sequence": "create sequence rowsignal.mine",
    "a function": "create function rowsignal.mine() returns int language sql as 'select 1'",
    "an overload": "create function rowsignal.value_v1(text) returns json language sql"
    " as 'select null::json'",
    "a type": "create type rowsignal.mine as enum ('a')",
    "a domain": "create domain rowsignal.mine as int",
}


@pytest.mark.parametrize("kind", INTRUSIONS)
async def test_an_object_of_another_role_in_the_schema_is_refused(
    ground: Ground, kind: str
) -> None:
    await ground.sql.execute("create table tenant.orders (id int primary key)")
    async with ground.installer.begin() as connection:
        await connection.run_sync(schema.apply)
    await ground.sql.execute(f"grant create on schema rowsignal to {ground.attacker_role}")
    await ground.attacker.execute(INTRUSIONS[kind])
    await ground.sql.execute(f"revoke create on schema rowsignal from {ground.attacker_role}")
    with pytest.raises(SchemaOwnerError, match=ground.attacker_role):
        await install_triggers(ground.installer, "tenant.orders")


async def test_the_right_to_create_in_the_schema_is_refused(ground: Ground) -> None:
    async with ground.installer.begin() as connection:
        await connection.run_sync(schema.apply)
    await ground.sql.execute("create table tenant.orders (id int primary key)")
    await ground.sql.execute("grant create on schema rowsignal to public")
    with pytest.raises(SchemaOwnerError, match="PUBLIC"):
        await install_triggers(ground.installer, "tenant.orders")


async def test_a_trigger_of_another_role_on_our_tables_is_refused(ground: Ground) -> None:
    """Such a trigger runs as the schema's owner at each change of a logged table."""
    async with ground.installer.begin() as connection:
        await connection.run_sync(schema.apply)
    await ground.sql.execute("create table tenant.orders (id int primary key)")
    await ground.sql.execute(f"grant trigger on rowsignal.change to {ground.attacker_role}")
    await ground.attacker.execute(f"""{TRAP}
        create function mallory.hook() returns trigger language plpgsql as
            'begin perform mallory.trap(); return new; end';
        create trigger hook before insert on rowsignal.change for each row
            execute function mallory.hook()""")
    with pytest.raises(SchemaOwnerError, match=r"trigger hook on rowsignal\.change"):
        await install_triggers(ground.installer, "tenant.orders", log=True)
    assert await ground.seen() == set()


async def test_a_superuser_does_not_trust_the_owner_that_it_could_be(engine: AsyncEngine) -> None:
    """pg_has_role calls a superuser a member of every role."""
    async with open_ground(engine, "ordinary owner") as ground:
        async with ground.installer.begin() as connection:
            await connection.run_sync(schema.apply)
        await ground.sql.execute("create table tenant.orders (id int primary key)")
        with pytest.raises(SchemaOwnerError, match=ground.installer_role):
            await install_triggers(ground.admin, "tenant.orders")
        async with ground.admin.begin() as connection:
            await connection.exec_driver_sql(
                f"grant trigger on tenant.orders to {ground.installer_role}"
            )
            await connection.exec_driver_sql(f"set local role {ground.installer_role}")
            await install_triggers(connection, "tenant.orders")


async def test_a_role_trusts_the_roles_that_it_is_a_member_of(ground: Ground) -> None:
    group = await ground.role("deployers", "nologin")
    first, second = await ground.role("first"), await ground.role("second")
    await ground.sql.execute(f"""
        grant {group} to {first}, {second};
        create table tenant.orders (id int primary key); grant trigger on tenant.orders to {group};
        {grant_create(group)}
    """)
    async with ground.engine(first).begin() as connection:
        await connection.exec_driver_sql(f"set local role {group}")
        await install_triggers(connection, "tenant.orders")
    (done,) = await install_triggers(ground.engine(second), "tenant.orders")
    assert done.action == "unchanged"
