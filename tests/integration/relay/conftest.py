"""A NATS server and a logged table for each test."""

import gc
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncEngine

from support.change_log import Shop, open_shop
from support.nats_server import NatsServer, client_of, nats_server
from support.relays import StreamReader
from support.wal import WalShop, open_wal_shop


@pytest.fixture
async def nats(tmp_path: Path) -> AsyncIterator[NatsServer]:
    async with nats_server(tmp_path / "nats") as server:
        yield server
    gc.collect()  # what nats-py has dropped is told here, and not in a later test


@pytest.fixture
async def client(nats: NatsServer) -> AsyncIterator[Client]:
    async with client_of(nats.url) as client:
        yield client


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    async with open_shop(engine) as shop:
        yield shop


@pytest.fixture
def stream(client: Client, engine: AsyncEngine) -> StreamReader:
    return StreamReader(client, engine.url.database or "")


@pytest.fixture
async def wal_shop(engine: AsyncEngine) -> AsyncIterator[WalShop]:
    async with open_wal_shop(engine) as shop:
        yield shop
