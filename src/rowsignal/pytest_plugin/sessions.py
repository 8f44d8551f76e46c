"""A session with new tables, for one test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.schema import CreateSchema

from rowsignal.orm import cleanup_tables
from rowsignal.orm.urls import async_url

DROP_LOCK_TIMEOUT = "set local lock_timeout = '5s'"


@asynccontextmanager
async def create_db_session(
    database_url: str,
    base: type[DeclarativeBase] | MetaData,
    *,
    echo: bool = False,
    expire_on_commit: bool = False,
    drop_tables: bool = True,
    cleanup: bool = False,
    engine_kwargs: dict[str, Any] | None = None,
    session_kwargs: dict[str, Any] | None = None,
) -> AsyncIterator[AsyncSession]:
    """Create the tables of a declarative base, and yield a session on them.

        @pytest.fixture
        async def session(worker_url):
            async with create_db_session(worker_url, Base) as session:
                yield session

    After the block, also after an error, the tables are dropped (`drop_tables`), or else emptied
    (`cleanup`), or left. `engine_kwargs` go to `create_async_engine`, `session_kwargs` to
    `async_sessionmaker`. Commits of the test are real commits, so that waits and streams see them.

    Raises an error after 5 seconds if a session that the test left open still holds a table.
    """
    metadata = base if isinstance(base, MetaData) else base.metadata
    engine = create_async_engine(async_url(database_url), echo=echo, **(engine_kwargs or {}))
    options = {"expire_on_commit": expire_on_commit} | (session_kwargs or {})
    try:
        async with engine.begin() as connection:
            await create_tables(connection, metadata)
        try:
            async with async_sessionmaker(engine, **options)() as session:
                yield session
        finally:
            await _clear(engine, metadata, drop_tables=drop_tables, cleanup=cleanup)
    finally:
        await engine.dispose()


async def create_tables(connection: AsyncConnection, metadata: MetaData) -> None:
    """Create the tables, and the schemas that they are in."""
    for schema in sorted({table.schema for table in metadata.tables.values() if table.schema}):
        await connection.execute(CreateSchema(schema, if_not_exists=True))
    await connection.run_sync(metadata.create_all)


async def _clear(
    engine: AsyncEngine, metadata: MetaData, *, drop_tables: bool, cleanup: bool
) -> None:
    if drop_tables:
        async with engine.begin() as connection:
            await connection.execute(text(DROP_LOCK_TIMEOUT))
            await connection.run_sync(metadata.drop_all)
    elif cleanup:
        async with AsyncSession(engine) as session:
            await cleanup_tables(session, metadata)
