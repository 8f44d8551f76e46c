"""Capturing runs no code of a table's owner with other rights than the writer's."""

from typing import Any

import pytest

from support.roles import TRAP, Ground

# Each kind of value comes with code that its owner can attach to the type, and with literals.
TYPES: dict[str, tuple[str, str, str, str]] = {}


def attack(name: str, column_type: str, before: str, after: str, setup: str) -> None:
    TYPES[name] = (setup, column_type, before, after)


MOOD = "create type mallory.mood as enum ('sad', 'glad');"
TARGETS = ("json", "jsonb", "text", "int", "bool", "name", "varchar")
for how in ("", "as assignment", "as implicit"):
    casts = "".join(
        f"""
        create function mallory.to_{target}(mallory.mood) returns {target} language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create cast (mallory.mood as {target})
            with function mallory.to_{target}(mallory.mood) {how};
        """
        for target in TARGETS
    )
    attack(f"enum with casts {how}".strip(), "mallory.mood", "'sad'", "'glad'", MOOD + casts)
attack(
    "array of an enum with a cast",
    "mallory.mood[]",
    "'{sad}'",
    "'{glad,sad}'",
    f"""{MOOD}
    create function mallory.convert(mallory.mood) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create function mallory.convert(mallory.mood[]) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create cast (mallory.mood as json) with function mallory.convert(mallory.mood);
    create cast (mallory.mood[] as json) with function mallory.convert(mallory.mood[]);""",
)
attack(
    "composite with casts",
    "mallory.pair",
    "'(1,a)'",
    "'(2,b)'",
    """create type mallory.pair as (a int, b text);
    create function mallory.convert(mallory.pair) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create function mallory.plain(mallory.pair) returns text language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create cast (mallory.pair as json) with function mallory.convert(mallory.pair);
    create cast (mallory.pair as text) with function mallory.plain(mallory.pair) as implicit;""",
)
attack(
    "composite of an enum with a cast",
    "mallory.pair",
    "'(1,sad)'",
    "'(2,glad)'",
    f"""{MOOD}
    create type mallory.pair as (a int, b mallory.mood);
    create function mallory.convert(mallory.mood) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create cast (mallory.mood as json) with function mallory.convert(mallory.mood);""",
)
attack(
    "range with a difference function",
    "mallory.span",
    "'[1,2)'",
    "'[2,5)'",
    """create function mallory.apart(a numeric, b numeric) returns float8 language plpgsql
        immutable as 'begin perform mallory.trap(); return 1; end';
    create type mallory.span as range (subtype = numeric, subtype_diff = mallory.apart);
    create function mallory.convert(mallory.span) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create cast (mallory.span as json) with function mallory.convert(mallory.span);""",
)
attack(
    "domain with a check",
    "mallory.short",
    "'a'",
    "'b'",
    """create function mallory.check(text) returns bool language plpgsql as
        'begin perform mallory.trap(); return true; end';
    create domain mallory.short as text check (mallory.check(value));""",
)
attack(
    "domain over a domain over an enum",
    "mallory.outer_mood",
    "'sad'",
    "'glad'",
    f"""{MOOD}
    create function mallory.check(text) returns bool language plpgsql as
        'begin perform mallory.trap(); return true; end';
    create domain mallory.inner_mood as mallory.mood check (mallory.check(value::text));
    create domain mallory.outer_mood as mallory.inner_mood check (mallory.check(value::text));
    create function mallory.convert(mallory.mood) returns json language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create cast (mallory.mood as json) with function mallory.convert(mallory.mood);""",
)
attack(
    "operators of an enum",
    "mallory.mood",
    "'sad'",
    "'glad'",
    f"""{MOOD}
    create function mallory.same(mallory.mood, mallory.mood) returns bool language plpgsql as
        'begin perform mallory.trap(); return false; end';
    create function mallory.joined(mallory.mood, mallory.mood) returns text language plpgsql as
        'begin perform mallory.trap(); return null; end';
    create operator mallory.= (leftarg = mallory.mood, rightarg = mallory.mood,
                              function = mallory.same);
    create operator mallory.<> (leftarg = mallory.mood, rightarg = mallory.mood,
                               function = mallory.same);
    create operator mallory.*<> (leftarg = mallory.mood, rightarg = mallory.mood,
                                function = mallory.same);
    create operator mallory.|| (leftarg = mallory.mood, rightarg = mallory.mood,
                               function = mallory.joined);""",
)
attack(
    "operator class of an enum",
    "mallory.mood",
    "'sad'",
    "'glad'",
    f"""{MOOD}
    create function mallory.converted(mallory.mood) returns text language plpgsql immutable as
        'begin perform mallory.trap(); return ''x''; end';
    create cast (mallory.mood as text) with function mallory.converted(mallory.mood) as implicit;
    create cast (mallory.mood as varchar) with inout as implicit;""",
)

SETTINGS = {
    "hints": {},
    "always": {"always": True},
    "log": {"log": True},
    "row values": {"log": True, "row_values": True},
    "filter": {"log": True, "filter_columns": ["v"]},
    "columns": {"log": True, "columns": ["v"]},
}


def table_of(settings: str) -> str:
    """Return the table that is installed with one of the settings."""
    return f"mallory.{settings.replace(' ', '_')}"


async def make(ground: Ground, columns: str, /, **named: dict[str, Any]) -> None:
    """Make a table for each of the settings, and install it; all listeners' locks are held."""
    for name, settings in SETTINGS.items():
        await ground.attacker.execute(f"create table {table_of(name)} ({columns})")
        await ground.install(table_of(name), **named.get(name, settings))
    await ground.wait_for_hints()


async def write(ground: Ground, before: str, after: str) -> None:
    """Write one and several rows in each way, as the table's owner."""
    for name in SETTINGS:
        for statement in (
            "insert into {t} (id, v) values (1, {before})",
            "insert into {t} (id, v) select g, {before} from generate_series(2, 5) as g",
            "update {t} set v = {after} where id = 1",
            "update {t} set v = {after}",
            "update {t} set id = id + 10",
            "update {t} set id = id + 10, v = {before} where id < 13",
            "delete from {t} where id = 21",
            "delete from {t}",
            "truncate {t}",
        ):
            text = statement.format(t=table_of(name), before=before, after=after)
            await ground.attacker.execute(text)


@pytest.mark.parametrize("kind", TYPES)
async def test_a_column_runs_no_code_of_its_owner(ground: Ground, kind: str) -> None:
    setup, column_type, before, after = TYPES[kind]
    await ground.attacker.execute(f"{TRAP} {setup}")
    await make(ground, f"id int primary key, v {column_type}")
    await write(ground, before, after)
    assert await ground.seen() == set()


@pytest.mark.parametrize("kind", TYPES)
async def test_a_column_that_changes_its_type_later_runs_no_code_of_its_owner(
    ground: Ground, kind: str
) -> None:
    setup, column_type, before, after = TYPES[kind]
    await ground.attacker.execute(TRAP)
    await make(ground, "id int primary key, v text")
    await write(ground, "'x'", "'y'")
    await ground.attacker.execute(setup)
    for name in SETTINGS:
        await ground.attacker.execute(
            f"alter table {table_of(name)} alter v type {column_type} using null"
        )
    await write(ground, before, after)
    assert await ground.seen() == set()


@pytest.mark.parametrize(
    "kind",
    [
        "enum with casts",
        "enum with casts as implicit",
        "composite with casts",
        "domain with a check",
        "domain over a domain over an enum",
        "operators of an enum",
        "range with a difference function",
    ],
)
async def test_a_key_runs_no_code_of_its_owner(ground: Ground, kind: str) -> None:
    setup, column_type, before, after = TYPES[kind]
    await ground.attacker.execute(f"{TRAP} {setup}")
    await make(ground, f"id {column_type} primary key, v int")
    for name in SETTINGS:
        await ground.attacker.execute(
            """insert into {t} values ({before}, 1), ({after}, 1);
            update {t} set v = 2;
            update {t} set v = 3 where ctid = '(0,3)';
            delete from {t} where ctid = '(0,4)';
            update {t} set id = {after};
            delete from {t}""".format(t=table_of(name), before=before, after=after)
        )
    assert await ground.seen() == set()


NAMES = (
    "{columns}x",
    "*/=mallory.evil()OR n.",
    "'||mallory.evil()||'",
    "$rowsignal$ mallory.evil() $rowsignal$",
    "%1$s %I %L %s 100%",
    "{one}{first}{wake}",
    "--",
    "a\nb",
    "back\\slash",
    "\\'; select mallory.evil(); --",
    "TG_RELID",
    "one_key",
    "is_one",
    "n",
    "o",
    "r",
    "new_rows",
    "rowsignal",
    "ü",
)


@pytest.mark.parametrize("name", NAMES)
async def test_a_column_name_is_no_code(ground: Ground, name: str) -> None:
    await ground.attacker.execute(
        f"""{TRAP}
        create function mallory.evil() returns bool language plpgsql as
            'begin perform mallory.trap(); return true; end'"""
    )
    kept = {"filter": {"log": True, "filter_columns": [name]}, "columns": {"log": True}}
    await make(ground, f'"{name}" int primary key, "{name}2" text', **kept)
    for table in map(table_of, SETTINGS):
        await ground.attacker.execute(
            f"""insert into {table} values (1, 'a');
            insert into {table} values (2, 'a'), (3, 'a');
            update {table} set "{name}2" = 'b';
            update {table} set "{name}" = 9 where "{name}" = 1;
            delete from {table}"""
        )
        logged = await ground.sql.fetch(
            "select operation, key ->> $1 as key from rowsignal.change"
            " where relation = $2::text::regclass order by id",
            name,
            table,
        )
        expected = "" if table.endswith(("hints", "always")) else "iiiuuudiddd"
        assert "".join(row["operation"].decode() for row in logged) == expected
        assert all(row["key"] for row in logged)
    assert await ground.seen() == set()


async def test_a_writer_cannot_steer_a_definer_by_its_own_objects(ground: Ground) -> None:
    """Functions and operators of the writer's temporary schema and search path are not found."""
    await ground.attacker.execute(TRAP)
    await make(ground, "id int primary key, v text, n numeric")
    await ground.attacker.execute("""
        create function mallory.concat(text, text) returns text language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create function mallory.jsonb_build_object(text, int) returns jsonb language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create function mallory.to_json(text) returns json language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create function mallory.same(text, text) returns bool language plpgsql as
            'begin perform mallory.trap(); return true; end';
        create function pg_temp.pg_current_xact_id() returns xid8 language plpgsql as
            'begin perform mallory.trap(); return null; end';
        do $$
        declare
            kind text;
            sign text;
        begin
            foreach kind in array '{int2,int4,int8,bool,oid,varchar,uuid,jsonb}'::text[] loop
                execute format('create function mallory.trapped(%1$I, %1$I) returns bool language plpgsql as ''
                    begin
                        perform mallory.trap();
                        return format(''''%%s'''', $1) operator(pg_catalog.=) format(''''%%s'''', $2);
                    end''', kind);
                foreach sign in array '{=,<>}'::text[] loop
                    execute format('create operator mallory.%1$s (leftarg = %2$I, rightarg = %2$I,'
                        ' function = mallory.trapped)', sign, kind);
                end loop;
            end loop;
            foreach kind in array '{jsonb,text,bool,record,oid,regclass}'::text[] loop
                execute format('create domain mallory.%I as pg_catalog.text check (mallory.trap() is null)',
                    kind);
            end loop;
        end $$;
        create function mallory.array_remove(text[], text) returns text[] language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create function mallory.pg_try_advisory_lock(int, int) returns bool language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create function mallory.to_regclass(text) returns regclass language plpgsql as
            'begin perform mallory.trap(); return null; end';
        create temp table change (id int);
        create temp table pg_class (oid oid);
        set search_path = mallory, pg_temp, pg_catalog;
    """)
    await write(ground, "'a'", "'b'")
    assert await ground.seen() == set()
    assert await ground.sql.fetchval("select count(*) from rowsignal.change") == 4 * 30
