"""Each test runs against a schema that a superuser installed, and one of an ordinary role."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from support.roles import INSTALLERS, Ground, open_ground


@pytest.fixture(params=INSTALLERS)
async def ground(request: pytest.FixtureRequest, engine: AsyncEngine) -> AsyncIterator[Ground]:
    async with open_ground(engine, request.param) as ground:
        yield ground
