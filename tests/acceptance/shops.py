"""Databases with the shop in them, its tables logged: made once a run, copied for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.demo.shop import create_shop
from rowsignal.demo.shop_tables import Base
from rowsignal.pytest_plugin.scratch import ScratchDatabases
from rowsignal.triggers import install_triggers


async def furnish(url: str) -> None:
    engine = create_async_engine(url)
    await create_shop(engine)
    await install_triggers(engine, Base, log=True, row_values=True)
    await engine.dispose()


@pytest.fixture(scope="session")
def shop_template(scratch_databases: ScratchDatabases) -> str:
    """URL of the database that the others are copies of."""
    url = scratch_databases.create()
    with ThreadPoolExecutor(1) as pool:  # a thread of its own, so that no test's loop is touched
        pool.submit(asyncio.run, furnish(url)).result()
    return url


@pytest.fixture
def shop_url(scratch_databases: ScratchDatabases, shop_template: str) -> Iterator[str]:
    """URL of a shop for one test."""
    url = scratch_databases.create(shop_template)
    yield url
    scratch_databases.drop(url)


@pytest_asyncio.fixture(loop_scope="module")
async def shop(shop_url: str) -> AsyncIterator[AsyncEngine]:
    """Engine on that shop, in the loop of the module."""
    engine = create_async_engine(shop_url)
    yield engine
    await engine.dispose()
