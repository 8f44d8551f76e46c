"""Hooks and fixtures; the package's docstring says how to use them."""

import os
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import MetaData, NullPool
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.orm import tables
from rowsignal.orm.urls import async_url
from rowsignal.pytest_plugin.scratch import ScratchDatabases, run
from rowsignal.pytest_plugin.sessions import create_tables

Preparation = Callable[[AsyncEngine], Awaitable[object]]

SERVER = pytest.StashKey[EmbeddedPostgres]()
WORKER_INPUT = "rowsignal_postgres_url"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Pass the URL of the shared server to a pytest-xdist worker."""
    node.workerinput[WORKER_INPUT] = _server_url(node.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the server of this run; on another server, drop databases of crashed workers."""
    if server := config.stash.get(SERVER, None):
        server.stop()
    elif (given := os.environ.get("DATABASE_URL")) and config.pluginmanager.has_plugin("dsession"):
        databases = ScratchDatabases(_asyncpg_url(given))
        databases.drop_orphans()
        databases.close()


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> str:
    """URL of the PostgreSQL server for this run: from DATABASE_URL, or of a new server.

    Override it to use a server of another kind.
    """
    workerinput: dict[str, str] = getattr(pytestconfig, "workerinput", {})
    return workerinput.get(WORKER_INPUT) or _server_url(pytestconfig)


@pytest.fixture(scope="session")
def database_metadata() -> Any:
    """Return the declarative base or MetaData with the tables of the test databases.

    Override it; by default the databases are empty.
    """
    return MetaData()


@pytest.fixture(scope="session")
def prepare_database() -> Preparation | None:
    """Coroutine function that completes the template through an engine.

    Override it to install triggers, run migrations or add rows that every test starts with.
    """
    return None


@pytest.fixture(scope="session")
def scratch_databases(postgres_url: str) -> Iterator[ScratchDatabases]:
    """Databases of this process: `create()` returns the URL of a new one."""
    databases = ScratchDatabases(postgres_url)
    try:
        yield databases
    finally:
        databases.close()


@pytest.fixture(scope="session")
def database_template(
    scratch_databases: ScratchDatabases,
    database_metadata: Any,
    prepare_database: Preparation | None,
) -> str:
    """URL of the template of all test databases; it must have no connections."""
    url = scratch_databases.create()
    run(_prepare(url, getattr(database_metadata, "metadata", database_metadata), prepare_database))
    return url


@pytest.fixture
def database_url(scratch_databases: ScratchDatabases, database_template: str) -> Iterator[str]:
    """URL of a database for this test alone, a copy of the template."""
    url = scratch_databases.create(database_template)
    try:
        yield url
    finally:
        scratch_databases.drop(url)


@pytest.fixture(scope="session")
def worker_database(scratch_databases: ScratchDatabases, database_template: str) -> str:
    """URL of a database for all tests of this process; combine it with `cleanup_tables`."""
    return scratch_databases.create(database_template)


@pytest.fixture
def cleanup_tables(worker_database: str, database_metadata: Any) -> Iterator[None]:
    """Empty the tables of `database_metadata` in `worker_database` after the test."""
    yield
    run(_empty(worker_database, database_metadata))


def _server_url(config: pytest.Config) -> str:
    if given := os.environ.get("DATABASE_URL"):
        return _asyncpg_url(given)
    if SERVER not in config.stash:
        config.stash[SERVER] = EmbeddedPostgres().start()
    return config.stash[SERVER].url


def _asyncpg_url(url: str) -> str:
    return async_url(url).render_as_string(hide_password=False)


async def _prepare(url: str, metadata: MetaData, prepare: Preparation | None) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with engine.begin() as connection:
            await create_tables(connection, metadata)
        if prepare is not None:
            await prepare(engine)
    finally:
        await engine.dispose()


async def _empty(url: str, metadata: Any) -> None:
    engine = create_async_engine(url, poolclass=NullPool)
    try:
        async with AsyncSession(engine) as session:
            await tables.cleanup_tables(session, metadata)
    finally:
        await engine.dispose()
