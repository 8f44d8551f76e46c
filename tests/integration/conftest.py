"""Databases that have the schema: most tests install triggers, and none of these the schema."""

import pytest
from sqlalchemy import NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.postgres import schema
from rowsignal.pytest_plugin.scratch import ScratchDatabases, run


@pytest.fixture(scope="session")
def database_template(scratch_databases: ScratchDatabases) -> str:
    """Provide another template than the tests of other folders have, in the same run."""
    url = scratch_databases.create()
    run(install_schema(url))
    return url


async def install_schema(url: str) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await connection.run_sync(schema.apply)
    finally:
        await engine.dispose()


@pytest.fixture
async def no_schema(engine: AsyncEngine) -> None:
    """Let the test begin with an empty database."""
    async with engine.begin() as connection:
        await connection.execute(text("drop schema rowsignal cascade"))
