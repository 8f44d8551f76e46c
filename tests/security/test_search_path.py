"""Functions and operators in another role's schema on the search path are never called."""

import asyncio

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import ChangeLog, grant, prune, revoke, watch
from rowsignal.doctor import diagnose
from rowsignal.triggers import install_triggers, trigger_status, uninstall_triggers
from support.roles import TRAP, Ground
from support.shop import Base, Customer, Order

# array_agg is left out: asyncpg itself calls it so when it asks about a type.
#
# An operator or function that fits the types of a call exactly is preferred to PostgreSQL's own
# that fits after a conversion (PostgreSQL manual, 10.2 and 10.3).
TRAPS = """
    set search_path = pg_catalog;
    do $$
    declare
        kinds constant text[] := '{name,text,oid,int2,int4,int8,"char",bool,json,jsonb,regclass,
            xid8,varchar,regtype,oidvector,int2vector,"\\"char\\"",numeric,float8,timestamptz,
            interval,uuid}';
        one text; two text; sign text; trap text;
    begin
        foreach one in array kinds loop
            foreach two in array kinds loop
                foreach sign in array '{=,<>,<,>,<=,>=,||,->,->>,~,&,+,-,*,/,?,@>}'::text[] loop
                    continue when one::regtype = two::regtype and sign in ('=', '<>', '<', '>', '<=', '>=')
                        and one not in ('json', 'varchar', 'int2vector');
                    continue when exists (select from pg_operator as o where o.oprname = sign
                        and o.oprleft = one::regtype and o.oprright = two::regtype);
                    trap := format('%s_%s_%s', md5(sign), one::regtype::oid, two::regtype::oid);
                    execute format('create function mallory.%I(%s, %s) returns %s language plpgsql as %L', trap, one, two,
                        case when sign in ('=', '<>', '<', '>', '<=', '>=', '~', '?', '@>') then 'bool' else 'text' end,
                        'begin perform mallory.trap(); raise exception ''trap: ' || sign || ' ' || one || ' ' || two || '''; end');
                    execute format('create operator mallory.%s (leftarg = %s, rightarg = %s, function = mallory.%I)',
                        sign, one, two, trap);
                end loop;
            end loop;
            foreach trap in array '{concat,quote_ident,quote_literal,to_json,to_jsonb,json_build_object,
                json_agg,string_agg,md5,unnest,to_regclass,coalesce_,lower,max,min,sum,count,
                format,json_array_elements,json_typeof,replace,encode,octet_length,pg_typeof,
                has_table_privilege,has_function_privilege,date_part,extract_,pg_partition_root}'::text[] loop
                begin
                    execute format('create function mallory.%I(%s) returns text language plpgsql as %L', trap, one,
                        'begin perform mallory.trap(); raise exception ''trap: ' || trap || '''; end');
                    execute format('create function mallory.%I(%s, text) returns text language plpgsql as %L', trap, one,
                        'begin perform mallory.trap(); raise exception ''trap: ' || trap || '''; end');
                    execute format('create function mallory.%I(text, %s) returns text language plpgsql as %L', trap, one,
                        'begin perform mallory.trap(); raise exception ''trap: ' || trap || '''; end');
                exception when duplicate_function then null;
                end;
            end loop;
        end loop;
    end $$;
    reset search_path
"""


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
        await connection.run_sync(Base.metadata.create_all)
    await install_triggers(installer, Order, log=True, row_values=True)
    await install_triggers(installer, Customer)
    await grant(installer, ground.bystander_role, serve=True, tables=Base)
    await trigger_status(installer, Base)
    await diagnose(installer, Base, role=ground.bystander_role)
    await diagnose(installer)
    await prune(installer)
    reader = await trapped(ground, ground.bystander_role)
    await ground.sql.execute("insert into customers values (1, 'x')")
    async with ChangeLog(reader) as log, watch(reader, Order, rows=True) as changes:
        before = await log.position()
        await ground.sql.execute(
            "insert into orders (id, status, total, weight) values (1, 'new', 1, 1)"
        )
        async with asyncio.timeout(60):
            assert (await anext(changes)).operation == "insert"  # type: ignore[union-attr]
        await log.read(before, tables=[("public", "orders")])
    await revoke(installer, ground.bystander_role, tables=Base)
    await uninstall_triggers(installer, None)
    await installer.dispose()
    await reader.dispose()
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
