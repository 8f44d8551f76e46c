"""The replication connection."""

import asyncio

from rowsignal.relay.wal.catalog import PUBLICATION
from rowsignal.relay.wal.connection import Keepalive, ReplicationConnection
from rowsignal.relay.wal.pgoutput import Insert, decode
from support.wal import WalShop

COUNT = 40  # of a KiB each
SENT = "select sent_lsn >= $1 from pg_stat_replication where application_name = 'rowsignal relay'"


async def test_all_that_has_come_is_received_at_once(wal_shop: WalShop) -> None:
    """However much more that is than libpq reads at a time."""
    sql = wal_shop.sql
    await sql.execute("alter table item add note text")
    slot = (await wal_shop.slot())["slot_name"]
    connection = await ReplicationConnection.open(wal_shop.engine.url)
    try:
        await connection.start(slot, PUBLICATION)
        await sql.execute(
            "insert into item select n, 0, repeat(md5(n::text), 32) from generate_series(1, $1) n",
            COUNT,
        )
        end = await sql.fetchval("select pg_current_wal_lsn()")
        async with asyncio.timeout(10):
            while not await sql.fetchval(SENT, end):
                await asyncio.sleep(0.01)
        received = await connection.receive(5 * COUNT)
    finally:
        connection.close()
    messages = [decode(it) for it in received if not isinstance(it, Keepalive)]
    assert sum(isinstance(it, Insert) for it in messages) == COUNT
