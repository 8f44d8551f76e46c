"""Migrations: down leaves nothing behind, and up again gives the same objects."""

import asyncio
import shutil
from importlib.resources import files

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.postgres import schema
from rowsignal.triggers import install_triggers
from support.hint_listener import connected, plain_url

OBJECTS = """
    SELECT pg_describe_object(classid, objid, objsubid), md5(concat(
        (SELECT concat(prosrc, proacl, proconfig, prosecdef) FROM pg_proc p
         WHERE classid = 'pg_proc'::regclass AND p.oid = objid),
        (SELECT string_agg(concat(attname, atttypid::regtype, attnotnull), ',' ORDER BY attnum)
         FROM pg_attribute a
         WHERE classid = 'pg_class'::regclass AND a.attrelid = objid AND attnum > 0
           AND NOT attisdropped),
        (SELECT relacl FROM pg_class c WHERE classid = 'pg_class'::regclass AND c.oid = objid)))
    FROM pg_depend
    WHERE refclassid = 'pg_namespace'::regclass AND refobjid = to_regnamespace('rowsignal')
    ORDER BY 1
"""


async def objects(engine: AsyncEngine) -> list[tuple[str, str]]:
    async with connected(engine) as owner:
        return [tuple(row) for row in await owner.fetch(OBJECTS)]


async def migrate(engine: AsyncEngine, target: int) -> list[str]:
    async with engine.begin() as connection:
        return await connection.run_sync(schema.migrate, target)


async def test_each_step_down_and_up_again_gives_the_same_objects(engine: AsyncEngine) -> None:
    seen = [await objects(engine)]
    for target in range(1, schema.CURRENT + 1):
        assert len(await migrate(engine, target)) == 1
        seen.append(await objects(engine))
    for target in reversed(range(schema.CURRENT)):
        assert len(await migrate(engine, target)) == 1
        assert await objects(engine) == seen[target]
    await migrate(engine, schema.CURRENT)
    assert await objects(engine) == seen[-1]
    assert (await schema.schema_status(engine)).is_current


async def test_going_down_takes_the_triggers_of_what_goes(engine: AsyncEngine) -> None:
    async with connected(engine) as writer:
        await writer.execute(
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (LIKE a INCLUDING ALL)"
        )
        await install_triggers(engine, "a")
        await install_triggers(engine, "b", log=True)
        carrying = (
            "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE tgname ~ 'rowsignal'"
        )
        await migrate(engine, 1)
        assert [row[0] for row in await writer.fetch(carrying)] == ["a"]
        await writer.execute("INSERT INTO a VALUES (1); INSERT INTO b VALUES (1)")
        await migrate(engine, 0)
        assert await writer.fetch(carrying) == []


async def test_psql_alone_installs(engine: AsyncEngine) -> None:
    psql = shutil.which("psql")
    if psql is None:
        pytest.skip("no psql on PATH")
    folder = files("rowsignal.sql").joinpath("migrations")
    for number, name in schema.migrations():
        script = str(folder.joinpath(f"{number:04}_{name}.up.sql"))
        run = await asyncio.create_subprocess_exec(
            psql, plain_url(engine), "-qX", "-v", "ON_ERROR_STOP=1", "-f", script
        )
        assert await run.wait() == 0
    found = await objects(engine)
    await migrate(engine, 0)
    await migrate(engine, schema.CURRENT)
    assert await objects(engine) == found
