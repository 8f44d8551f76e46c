"""The schema in a database: versions, many at once, and psql."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.exceptions import SchemaVersionError
from rowsignal.postgres import schema
from support.hint_listener import connected


async def apply(engine: AsyncEngine) -> list[str]:
    async with engine.begin() as connection:
        return await connection.run_sync(schema.apply)


@pytest.mark.usefixtures("no_schema")
async def test_applying_twice_does_nothing_the_second_time(engine: AsyncEngine) -> None:
    assert await schema.schema_status(engine) == schema.SchemaStatus(0, schema.CURRENT)
    assert await apply(engine) == ["hints", "change_log", "retention", "security"]
    assert await apply(engine) == []
    assert (await schema.schema_status(engine)).is_current


@pytest.mark.usefixtures("no_schema")
async def test_twelve_at_once_apply_once(engine: AsyncEngine) -> None:
    engines = [create_async_engine(engine.url) for _ in range(12)]
    applied = await asyncio.gather(*map(apply, engines))
    assert sorted(map(len, applied)) == [0] * 11 + [schema.CURRENT]
    for other in engines:
        await other.dispose()


async def test_a_newer_schema_is_refused(engine: AsyncEngine) -> None:
    await apply(engine)
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO rowsignal.migration VALUES (99, 'later')"))
    with pytest.raises(SchemaVersionError, match="version 99"):
        await apply(engine)


async def test_everybody_may_use_what_runs_with_the_rights_of_its_caller(
    engine: AsyncEngine,
) -> None:
    await apply(engine)
    functions = (
        "SELECT proname FROM pg_proc WHERE pronamespace = 'rowsignal'::regnamespace"
        " AND has_function_privilege('public', oid, 'EXECUTE') AND (prosecdef"
        " OR oid NOT IN (SELECT rowsignal.open_functions_v1()::oid))"
    )
    tables = (
        "SELECT relname FROM pg_class WHERE relnamespace = 'rowsignal'::regnamespace"
        " AND relkind IN ('r', 'v') AND has_table_privilege('public', oid, 'SELECT, INSERT')"
    )
    async with connected(engine) as owner:
        assert await owner.fetch(functions) == []
        assert [row[0] for row in await owner.fetch(tables)] == ["migration"]


async def test_functions_pin_their_search_path(engine: AsyncEngine) -> None:
    await apply(engine)
    loose = (
        "SELECT proname FROM pg_proc WHERE pronamespace = 'rowsignal'::regnamespace AND NOT"
        " EXISTS (SELECT FROM unnest(proconfig) c WHERE c = 'search_path=pg_catalog, pg_temp')"
        " AND proname <> 'value_v1'"  # to be inlined, it names everything with its schema
        " AND prosqlbody IS NULL"  # parsed when it was made: no path is searched later
    )
    async with connected(engine) as owner:
        assert await owner.fetch(loose) == []
