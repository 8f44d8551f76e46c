"""Databases that have the schema: most tests install triggers, and none of these the schema."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.postgres import schema
from rowsignal.pytest_plugin.fixtures import Preparation


async def install_schema(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await connection.run_sync(schema.apply)


@pytest.fixture(scope="session")
def prepare_database() -> Preparation | None:
    """Install the schema into the template of the tests' databases."""
    return install_schema


@pytest.fixture
async def no_schema(engine: AsyncEngine) -> None:
    """Let the test begin with an empty database."""
    async with engine.begin() as connection:
        await connection.execute(text("drop schema rowsignal cascade"))
