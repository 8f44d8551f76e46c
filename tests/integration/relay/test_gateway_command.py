"""`rowsignal gateway` as a process, and the descriptions of tables that it lives by."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from nats.aio.client import Client
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import NotFoundError, NotWatchedError
from rowsignal.relay import relayed_tables
from rowsignal.relay.descriptions import Descriptions, describe, table_of
from support.event_streams import execute, make_tables, reading
from support.gateways import COMMAND, gateway_process
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying

PATIENCE = 60.0


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> AsyncIterator[str]:
    """Provide the name of a database whose orders and items are relayed."""
    await make_tables(engine, row_values=True)
    async with relaying(engine, nats.url):
        await stream.next()
        await execute(engine, "insert into orders values (1, 'open', 1.50, 1, 'x')")
        await stream.changes(1)
        yield engine.url.database or ""


async def test_a_gateway_serves_what_is_relayed(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway_process("--nats", nats.url, "--database", relayed) as gateway:
        path = "/v1/changes/orders?where=total.gt.2"
        async with reading(gateway.port, path) as reader:
            await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
            await execute(engine, "insert into orders values (2, 'open', 1, 1, 'x')")
            await execute(engine, "insert into orders values (3, 'open', 3.20, 1, 'x')")
            event = await reader.until("insert")
        async with httpx.AsyncClient(base_url=gateway.address) as client:
            script = await client.get("/client.js")
            metrics = await client.get("/metrics")
            live = await client.get("/health/live")
    assert event.key == 3
    assert event.data["row"]["total"] == "3.20"
    assert script.headers["content-type"].startswith("text/javascript")
    assert "rowsignal_deliveries_total" in metrics.text
    assert live.json() == {"status": "ok"}


async def test_a_gateway_with_a_database_begins_with_the_rows(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    async with (
        gateway_process("--nats", nats.url, "--url", url, "--table", "orders") as gateway,
        reading(gateway.port, "/v1/changes/orders?snapshot=true") as reader,
    ):
        row = await reader.until("snapshot")
        await reader.until("snapshot-end")
    assert row.key == 1


async def test_a_gateway_waits_for_rows_without_listening(
    relayed: str, engine: AsyncEngine, nats: NatsServer
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    await execute(engine, "insert into orders values (2, 'open', 2, 1, 'x')")
    listening = sa.text(
        "select count(*) from pg_stat_activity where datname = current_database()"
        " and application_name = 'rowsignal listener'"
    )
    async with (
        gateway_process("--nats", nats.url, "--url", url, "--table", "orders") as gateway,
        httpx.AsyncClient(base_url=gateway.address, timeout=PATIENCE) as client,
        asyncio.timeout(PATIENCE),
    ):
        waiting = asyncio.create_task(client.get("/v1/wait/orders/2?timeout=50"))
        total = 2
        while not waiting.done():
            total += 1
            await execute(engine, f"update orders set total = {total} where id = 2")
            await asyncio.wait([waiting], timeout=0.5)
        answer = (await waiting).json()
        async with engine.connect() as connection:
            assert await connection.scalar(listening) == 1  # the relay's
    assert int(answer["row"]["total"]) in range(3, total + 1)


async def test_tables_are_described_to_gateways(
    relayed: str, engine: AsyncEngine, nats: NatsServer, client: Client, stream: StreamReader
) -> None:
    found = {
        table.name: columns for table, columns in (await relayed_tables(client, relayed)).items()
    }
    assert set(found) == {"orders", "items"}
    assert set(found["orders"]) == {"id", "status", "total", "customer", "secret"}
    (only,) = await relayed_tables(nats.url, relayed, {"public.items": ["name"]})
    assert [it.name for it in only.primary_key] == ["order_id", "name"]
    with pytest.raises(NotFoundError, match="not relayed; there are public"):
        await relayed_tables(client, relayed, {"absent": None})
    with pytest.raises(NotWatchedError, match="rowsignal relay"):
        await relayed_tables(client, "absent")


async def test_a_new_column_is_described_when_a_change_comes(
    relayed: str, engine: AsyncEngine, client: Client, stream: StreamReader
) -> None:
    await execute(engine, "alter table orders add column extra integer")
    async with asyncio.timeout(PATIENCE):
        while "extra" not in str(await relayed_tables(client, relayed)):
            await execute(engine, "update orders set status = status || 'x'")
            await stream.next()


@pytest.mark.parametrize(
    "type_",
    [
        sa.BigInteger(),
        sa.Numeric(10, 2),
        sa.REAL(),
        sa.Float(20),
        sa.Double(),
        sa.Text(),
        sa.String(20),
        sa.Boolean(),
        sa.Uuid(),
        sa.Date(),
        sa.DateTime(timezone=True),
        sa.DateTime(),
        sa.Time(timezone=True),
        postgresql.JSONB(),
        postgresql.CITEXT(),
        postgresql.ARRAY(sa.Numeric()),
        sa.Enum("a", "b", name="letters"),
        postgresql.DOMAIN("positive", sa.Integer()),
    ],
)
def test_a_type_that_was_described_filters_as_before(type_: Any) -> None:
    from rowsignal.exceptions import FilterError
    from rowsignal.sse.access.column_types import kind_of

    def kind(table: sa.Table) -> Any:
        try:
            found = kind_of(table.c.v)
        except FilterError:
            return None
        return found.name, found.labels, getattr(found, "is_ordered", None)

    table = sa.Table(
        "t", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("v", type_)
    )
    made = table_of(describe(table, ["id", "v"]))
    assert kind(made) == kind(table)
    assert made.c.id.primary_key
    assert made.schema == "public"


async def test_a_gateway_says_what_it_lacks(nats: NatsServer, monkeypatch: Any) -> None:
    for name in ("DATABASE_URL", "ROWSIGNAL_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    for arguments, words in (
        (("--nats", nats.url), b"--database"),
        (("--nats", nats.url, "--database", "absent"), b"rowsignal relay"),
    ):
        process = await asyncio.create_subprocess_exec(COMMAND, "gateway", *arguments, stderr=-1)
        _, said = await process.communicate()
        assert process.returncode in {1, 2}
        assert words in said
        assert b"Traceback" not in said


async def test_descriptions_are_found_while_they_are_stored_anew(client: Client) -> None:
    descriptions = Descriptions(client, "shop")
    tables = [
        sa.Table(name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
        for name in ("one", "two")
    ]
    made = [describe(table, ["id"]) for table in tables]
    await descriptions.store(made, 1)
    done = asyncio.Event()

    async def store_anew() -> None:
        while not done.is_set():
            await descriptions.store(made, 1)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(store_anew())
        for _ in range(300):
            assert set(await descriptions.load()) == {("public", "one"), ("public", "two")}
        done.set()
