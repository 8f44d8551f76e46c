"""A database of 0.1.0 becomes one of today, in place, and its attackers find nothing."""

import asyncio
import hashlib
from importlib.resources import files

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import ChangeLog
from rowsignal.change_log.positions import Position, Snapshot
from rowsignal.changes import Reset
from rowsignal.postgres import schema
from rowsignal.postgres.statements import read
from rowsignal.triggers import install_triggers, trigger_status
from support.hint_listener import connected
from support.roles import INSTALLERS, TRAP, Ground, open_ground

RELEASED = {
    "0001_hints.down.sql": "14ae87970d5ca1c261046e31a1eb559a77b4c7b1f10147ebe0ee7f1ea87b5b42",
    "0001_hints.up.sql": "52a848ee8e3fc7c916c2ab783b99585afca674cd3784d65a58dc0903d119fe6f",
    "0002_change_log.down.sql": "fb1847c3cf579b565d0b0fcb945d45a6ac66c3928cb98abbce9480a86d5de061",
    "0002_change_log.up.sql": "d29884c1e3eaf2e14fbfef585656892610e66e4d4793eda74a92eebbdb7f48dd",
    "0003_retention.down.sql": "0f25fcd881655bbf2d8d9dff15c646764cd4e8488b40b88985264405da0b6681",
    "0003_retention.up.sql": "6017d0902e1f5c29242595745e073575db5bde9faa2668a3e9c5ab274130d1c7",
}

OBJECTS = """
    select 'function', p.oid::regprocedure::text,
        concat(md5(p.prosrc), ' ', p.prosecdef, ' ', p.provolatile, p.proparallel, ' ',
            p.proconfig, ' ', (select array_agg(a::text order by a::text) from unnest(coalesce(p.proacl, acldefault('f', p.proowner))) as a))
    from pg_proc as p where p.pronamespace = 'rowsignal'::regnamespace
    union all
    select 'column', concat(c.relname, '.', a.attname), concat(format_type(a.atttypid, a.atttypmod),
        ' ', a.attnotnull, ' ', a.attidentity, ' ', pg_get_expr(d.adbin, d.adrelid))
    from pg_class as c join pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
    left join pg_attrdef as d on d.adrelid = c.oid and d.adnum = a.attnum
    where c.relnamespace = 'rowsignal'::regnamespace and c.relkind in ('r', 'S')
    union all
    select 'table', c.relname, concat(c.relkind, c.relpersistence, ' ',
        (select array_agg(x order by x) from unnest(c.reloptions) as x), ' ',
        (select array_agg(a::text order by a::text) from unnest(coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::"char", c.relowner))) as a))
    from pg_class as c where c.relnamespace = 'rowsignal'::regnamespace
    union all
    select 'constraint', conname, pg_get_constraintdef(oid)
    from pg_constraint where connamespace = 'rowsignal'::regnamespace
    union all
    select 'type', typname, (select array_agg(a::text order by a::text) from unnest(coalesce(typacl, acldefault('T', typowner))) as a)::text
    from pg_type where typnamespace = 'rowsignal'::regnamespace and typtype = 'c'
    union all
    select 'trigger', concat(t.tgrelid::regclass, ' ', t.tgname),
        concat(t.tgfoid::regproc, ' ', t.tgtype, t.tgenabled, ' ', encode(t.tgargs, 'escape'))
    from pg_trigger as t join pg_proc as p on p.oid = t.tgfoid
    where p.pronamespace = 'rowsignal'::regnamespace
    union all
    select 'schema', nspname, (select array_agg(a::text order by a::text) from unnest(nspacl) as a)::text
    from pg_namespace where nspname = 'rowsignal'
    union all
    select 'comment', description, '' from pg_description
    where objoid = 'rowsignal'::regnamespace and classoid = 'pg_namespace'::regclass
    order by 1, 2, 3
"""
TABLES = """
    create table public.a (id int primary key, v text);
    create table public.b (id int primary key, v text, w numeric);
"""


@pytest.mark.parametrize("name", RELEASED)
def test_released_migrations_never_change(name: str) -> None:
    text = files("rowsignal.sql").joinpath("migrations", name).read_bytes()
    assert hashlib.sha256(text).hexdigest() == RELEASED[name]


def test_migrations_read_no_other_file() -> None:
    for number, name in schema.migrations():
        assert r"\\i" not in read(f"migrations/{number:04}_{name}.up.sql")


async def install_old(engine: AsyncEngine, *tables: str) -> None:
    """Install the schema of 0.1.0 with its own script, and triggers as it did."""
    async with engine.begin() as connection:
        await connection.run_sync(schema.migrate, 3)
    for table in tables:
        name, _, settings = table.partition(" ")
        async with engine.begin() as connection:
            await connection.exec_driver_sql(
                f"select rowsignal.install_v1('{name}', '{settings or '{}'}')"
            )


async def objects(engine: AsyncEngine) -> list[tuple[str, ...]]:
    async with connected(engine) as sql:
        return [tuple(row) for row in await sql.fetch(OBJECTS)]


async def test_a_fresh_installation_equals_the_sum_of_the_migrations(engine: AsyncEngine) -> None:
    async with connected(engine) as sql:
        await sql.execute(TABLES)
        await install_triggers(engine, ["public.a"])
        await install_triggers(engine, ["public.b"], log=True)
        fresh = await objects(engine)
        await sql.execute("drop table a, b; drop schema rowsignal cascade")
        await sql.execute(TABLES)
        await install_old(engine, "public.a", 'public.b {"log": true}')
        await install_triggers(engine, ["public.a"])
        await install_triggers(engine, ["public.b"], log=True)
        upgraded = await objects(engine)
    tokens = [(kind, name) for kind, name, _ in fresh if kind == "trigger"]
    assert tokens == [(kind, name) for kind, name, _ in upgraded if kind == "trigger"]
    assert [row for row in fresh if row[0] != "trigger" and "capture_log_" not in row[1]] == [
        row for row in upgraded if row[0] != "trigger" and "capture_log_" not in row[1]
    ]
    assert {one.state for one in await trigger_status(engine)} == {"installed"}


ATTACK = """
    create type mallory.mood as enum ('sad', 'glad');
    create function mallory.json(mallory.mood) returns json language plpgsql as
        'begin perform mallory.trap(); return ''1''; end';
    create cast (mallory.mood as json) with function mallory.json(mallory.mood);
    create table mallory.h (id int primary key, v mallory.mood);
    create table mallory.l (id int primary key, v mallory.mood);
"""
WRITES = """
    insert into mallory.{0} values (1, 'sad'), (2, 'sad');
    update mallory.{0} set v = 'glad'; update mallory.{0} set v = 'sad' where id = 1;
    delete from mallory.{0}
"""


async def attack(ground: Ground) -> set[str]:
    """Write the attacker's captured tables; return the roles that ran its code."""
    for table in ("h", "l"):
        await ground.attacker.execute(WRITES.format(table))
    return await ground.seen()


async def upgrade_by_install(ground: Ground) -> None:
    await ground.install("mallory.h")
    await ground.install("mallory.l", log=True, row_values=True)


async def upgrade_by_migrate(ground: Ground) -> None:
    async with ground.installer.begin() as connection:
        await connection.run_sync(schema.migrate)


async def upgrade_by_script(ground: Ground) -> None:
    from rowsignal.triggers import install_script

    owner = await ground.connect(ground.installer_role)
    await owner.execute("begin;" + install_script("mallory.h") + "commit")


@pytest.mark.parametrize("upgrade", [upgrade_by_install, upgrade_by_migrate, upgrade_by_script])
@pytest.mark.parametrize("installer", INSTALLERS)
async def test_an_upgrade_ends_the_attacks_and_keeps_positions(
    engine: AsyncEngine, installer: str, upgrade
) -> None:
    async with open_ground(engine, installer) as ground:
        await ground.attacker.execute(TRAP + ATTACK)
        await install_old(
            ground.installer, "mallory.h", 'mallory.l {"log": true, "row_values": true}'
        )
        await ground.wait_for_hints()
        assert ground.installer_role in await attack(ground)
        # what a stranger can put in the way of an upgrade
        await ground.attacker.execute("""
            create view mallory.v as select rowsignal.named_key_v1('{"a": 1}', '{a}') as key;
            create view mallory.w as select rowsignal.key_v1(row(1)) as key;
            create table mallory.ticks (t rowsignal.tick, c rowsignal.change);
        """)
        await ground.sql.execute("select rowsignal.start_incarnation_v1()")
        row = await ground.sql.fetchrow(
            "select i.id, pg_current_snapshot()::text as now from rowsignal.incarnation as i"
        )
        position = Position(row["id"], Snapshot.parse(row["now"])).encode()
        await ground.sql.execute("insert into mallory.l values (7, 'sad')")
        await ground.seen()

        await upgrade(ground)

        assert await attack(ground) == set()
        assert (await schema.schema_status(ground.installer)).is_current
        async with ChangeLog(ground.installer) as log:
            batch = await log.read(position)
        assert not isinstance(batch, Reset), batch
        assert batch.changes[0].key == {"id": 7}
        assert len(batch.changes) > 3
        await upgrade_by_install(ground)
        assert [one for one in await trigger_status(ground.installer) if one.problem] == []
        assert await attack(ground) == set()


async def test_many_upgrade_at_once(engine: AsyncEngine) -> None:
    async with connected(engine) as sql:
        await sql.execute(TABLES)
        await install_old(engine, "public.a", 'public.b {"log": true}')
        await asyncio.gather(*(install_triggers(engine, "public.a") for _ in range(6)))
        await sql.execute("insert into b values (1, 'x', 1)")
        assert await sql.fetchval("select count(*) from rowsignal.change") == 1
