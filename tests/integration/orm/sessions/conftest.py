"""Sessions on a database with people in it."""

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from support.people import Base

Maker = async_sessionmaker[AsyncSession]


@pytest.fixture
async def maker(engine: AsyncEngine) -> Maker:
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("insert into people (name) values ('ada')"))
    return async_sessionmaker(engine, expire_on_commit=False)
