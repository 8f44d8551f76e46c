"""Databases with the shop in them, its tables logged: made once a run, copied for each test."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from acceptance.live_service import furnish
from rowsignal.pytest_plugin.scratch import ScratchDatabases


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
