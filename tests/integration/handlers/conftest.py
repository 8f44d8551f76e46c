from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from support.handlers import make_tables
from support.waits import close_listener


@pytest.fixture
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    """Tasks whose changes are logged, and effects; no listener is left behind."""
    await make_tables(engine)
    yield
    await close_listener(engine)
