"""PostgreSQL for the suite: one server a run, one database a test."""

from collections.abc import AsyncIterator, Iterator
from itertools import count

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres

numbers = count()


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """Throw-away PostgreSQL server of this test run."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture
async def database_url(server: EmbeddedPostgres) -> AsyncIterator[str]:
    """URL of a fresh, empty database, dropped after the test."""
    name = f"test_{next(numbers)}"
    admin = await asyncpg.connect(server.dsn)
    try:
        await admin.execute(f"create database {name} strategy file_copy" if admin.get_server_version() >= (15,) else f"create database {name}")
        yield server.url_of(name)
        await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Engine on a fresh, empty database."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()
