"""What a relay publishes that reads the WAL."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.relay import subject_of
from rowsignal.relay.messages import POSITION
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import WalShop, open_wal_shop


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncIterator[WalShop]:
    async with open_wal_shop(engine) as shop:
        yield shop


async def test_a_change_is_one_message_with_its_row_and_its_place(
    shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    async with relaying(shop.engine, nats.url, capture="wal"):
        first = await stream.next()
        await shop.insert(7)
        await shop.sql.execute("update item set v = 5")
        await shop.sql.execute("delete from item")
        inserted, updated, deleted = await stream.changes(3)
    assert first.operation == "checkpoint"
    database = shop.engine.url.database or ""
    assert inserted.subject == subject_of(database, ("public", "item"))
    assert inserted.body["row"] == {"id": 7, "v": 0}
    assert updated.body["changed"] == ["v"]
    assert updated.body["row"] == {"id": 7, "v": 5}
    assert updated.body["old"] == {"id": 7, "v": 0}
    assert deleted.operation == "delete"
    assert deleted.body["row"] is None
    assert deleted.body["old"] == {"id": 7, "v": 5}
    places = [it.headers["Nats-Msg-Id"] for it in (inserted, updated, deleted)]
    assert places == [it.headers[POSITION] for it in (inserted, updated, deleted)]
    assert len(set(places)) == 3
    assert inserted.headers["Rowsignal-Transaction"].isdecimal()
    system = await shop.sql.fetchval("select system_identifier from pg_control_system()")
    assert inserted.headers["Rowsignal-Incarnation"] == str(system)
