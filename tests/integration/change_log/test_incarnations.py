"""When a log is no longer the one it was: crash, promotion, restore."""

import asyncio
import os
import signal

import asyncpg
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.change_log import ChangeLog, positions
from rowsignal.change_log import log as change_log
from rowsignal.change_log.reader import LogTransaction, Window, log_transaction
from rowsignal.changes import Reset
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import PendingChangesError, StandbyError
from support.change_log import Shop, connect, ids, open_shop
from support.standby import base_backup


async def read_unchecked(engine: AsyncEngine, position: str) -> list[int]:
    """Return the ids of transactions that a reader gets who trusts its old snapshot."""
    start = positions.decode(position)
    assert isinstance(start, positions.Position)
    async with log_transaction(engine) as transaction:
        now = positions.Snapshot.parse(
            await transaction.driver.fetchval("select pg_current_snapshot()::text")
        )
        window = Window(start.incarnation, start.seen, now, 0, is_last=True)
        return [record["xid"] for record in await transaction.changes(window, None, 100)]


async def ended(connection: asyncpg.Connection) -> None:
    """Return when the server has taken notice of a crash, and ended everybody's connection."""
    async with asyncio.timeout(30):
        while not connection.is_closed():
            await asyncio.sleep(0.01)


async def reconnected(engine: AsyncEngine) -> asyncpg.Connection:
    """Connect as soon as the server is there again."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await connect(engine)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await asyncio.sleep(0.02)


async def test_a_restart_is_no_reset_but_a_crash_that_reuses_transaction_ids_is() -> None:
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        async with open_shop(engine) as shop:
            start = await shop.log.position()
            await asyncio.to_thread(server.restart)
            shop.sql = await reconnected(engine)
            await shop.insert(1)
            assert ids(await shop.read(start)) == [1]
            for _ in range(200):  # ids that leave no trace in the WAL
                await shop.sql.execute("select pg_current_xact_id()")
            position = (await shop.read(start)).position
            victim = await shop.connect()
            os.kill(victim.get_server_pid(), signal.SIGKILL)
            await ended(shop.sql)
            again = await reconnected(engine)
            await again.execute("insert into item values (2, 0)")
            xid = await again.fetchval("select max(xid::text::bigint) from rowsignal.change")
            seen = positions.decode(position)
            assert isinstance(seen, positions.Position)
            assert xid < seen.seen.xmax, "the id was in use before the crash"
            assert await read_unchecked(engine, position) == [], "so the change would be lost"
            answer = await shop.log.read(position)
            assert isinstance(answer, Reset)
            assert "crash" in answer.reason
            await again.execute("insert into item values (3, 0)")
            assert ids(await shop.read(answer.position or "")) == [3]
            await again.close()
            await shop.sql.close()
        await engine.dispose()


async def test_a_standby_is_refused_and_its_promotion_is_a_reset() -> None:
    with EmbeddedPostgres() as server:
        engine = create_async_engine(server.url)
        async with open_shop(engine) as shop:
            await shop.insert(1)
            position = await shop.log.position()
            copy = await asyncio.to_thread(base_backup, server)
            with EmbeddedPostgres(data_dir=copy) as standby:
                replica = create_async_engine(standby.url)
                async with ChangeLog(replica) as log:
                    with pytest.raises(StandbyError, match="connect to the primary"):
                        await log.position()
                    with pytest.raises(StandbyError, match="connect to the primary"):
                        await log.read(position)
                    other = await connect(replica)
                    assert await other.fetchval("select pg_promote()")
                    answer = await log.read(position)
                    assert isinstance(answer, Reset)
                    await other.execute("insert into item values (2, 0)")
                    assert ids(await log.read(answer.position or "")) == [2]
                    await other.close()
                await replica.dispose()
        await engine.dispose()


async def test_a_restored_log_starts_over(server: EmbeddedPostgres, shop: Shop) -> None:
    position = await shop.log.position()
    await shop.insert(1)
    # As from a busier server: the transaction is still to come where the dump is restored.
    await shop.sql.execute(
        "insert into rowsignal.change (xid, relation, operation, key)"
        " select (xid::text::bigint + 30)::text::xid8, relation, 'i', '{\"id\": 666}'"
        " from rowsignal.change"
    )
    host = server.dsn.partition("host=")[2]
    source = shop.engine.url.database or ""
    await shop.sql.execute("create database restored")
    dump, load = (str(server.bin_dir / name) for name in ("pg_dump", "psql"))
    there = ["-h", host, "-U", "postgres", "-d"]
    process = await asyncio.create_subprocess_exec(dump, *there, source, stdout=-1)
    script, _ = await process.communicate()
    loading = await asyncio.create_subprocess_exec(
        load, *there, "restored", "-q", "-v", "ON_ERROR_STOP=1", stdin=-1, stdout=-3
    )
    await loading.communicate(script)
    assert (process.returncode, loading.returncode) == (0, 0)

    engine = create_async_engine(shop.engine.url.set(database="restored"))
    connection = await connect(engine)
    try:
        async with ChangeLog(engine) as log:
            answer = await log.read(position)
            assert isinstance(answer, Reset), "the dump brought the old incarnation along"
            for _ in range(40):
                await connection.execute("select pg_current_xact_id()")
            await connection.execute("insert into item values (2, 0)")
            assert ids(await log.read(answer.position or "")) == [2], "a ghost came along"
    finally:
        await connection.close()
        await engine.dispose()
        await shop.sql.execute("drop database restored with (force)")


async def test_a_log_may_take_long_to_begin(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restored log has much to delete; here another session holds the lock."""
    monkeypatch.setattr(change_log, "ANSWER", 0.1)
    async with shop.sql.transaction():
        await shop.sql.execute("lock table rowsignal.incarnation in share row exclusive mode")
        beginning = asyncio.create_task(shop.log.position())
        done, _ = await asyncio.wait({beginning}, timeout=1.0)
        assert not done
    assert positions.decode(await beginning)


async def test_a_transaction_that_has_written_can_not_read_positions(shop: Shop) -> None:
    await shop.log.position()
    async with shop.sql.transaction():
        await shop.sql.execute("insert into item values (1, 0)")
        xid = await shop.sql.fetchval("select pg_current_xact_id()::text::bigint")
        other = await shop.connect()
        await other.execute("select pg_current_xact_id()")
        own_view = positions.Snapshot.parse(
            await shop.sql.fetchval("select pg_current_snapshot()::text")
        )
        assert own_view.sees(xid), "what it writes from here on would count as read"
        with pytest.raises(PendingChangesError, match="Use another transaction"):
            await LogTransaction(shop.sql).head()
