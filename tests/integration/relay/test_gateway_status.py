"""What a gateway and the doctor say of the stream and the relay, from NATS alone."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import httpx
import pytest
from nats.aio.client import Client
from nats.js import api
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.doctor import Severity, stream_findings
from rowsignal.relay import stream_health, stream_name, unrelayed_seconds
from support.event_streams import Item, Order, execute, make_tables, reading
from support.gateways import COMMAND, GatewayProcess, gateway_process
from support.nats_server import NatsServer
from support.relays import RelayProcess, StreamReader, relay_process, relaying
from support.tokens import SECRET, bearer

PATIENCE = 60.0


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> AsyncIterator[RelayProcess]:
    """Provide a relay process of orders."""
    await make_tables(engine, row_values=True)
    async with relay_process(engine, nats.url) as relay:
        await relay.until("relaying")
        await execute(engine, "insert into orders values (1, 'open', 1.50, 1, 'x')")
        await stream.changes(1)
        yield relay


def arguments(engine: AsyncEngine, nats: NatsServer, *more: str) -> tuple[str, ...]:
    return ("--nats", nats.url, "--database", engine.url.database or "", *more)


async def status_when(gateway: GatewayProcess, is_wanted: Any) -> Mapping[str, Any]:
    """Return the status once it is as wanted."""
    async with httpx.AsyncClient(base_url=gateway.address) as client, asyncio.timeout(PATIENCE):
        while True:
            found: Mapping[str, Any] = (await client.get("/v1/status")).json()
            if is_wanted(found):
                return found
            await asyncio.sleep(0.1)


async def test_the_status_tells_of_stream_relay_and_tables(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway_process(*arguments(engine, nats)) as gateway:
        found = await status_when(gateway, lambda it: it["stream"] and it["ready"])
        async with reading(gateway.port, "/v1/changes/orders") as reader:
            await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
            await execute(engine, "update orders set total = 2 where id = 1")
            await reader.until("update")
            later = await status_when(gateway, lambda it: it["stream"]["last_sequence"] == 3)
            assert later["readers"]["now"] == 1
    assert found["database"]["name"] == engine.url.database
    assert found["relay"]["state"] == "at work"
    assert found["relay"]["lag"] < PATIENCE
    assert found["stream"]["name"] == stream_name(engine.url.database or "")
    assert found["stream"]["behind"] == 0
    assert found["stream"]["messages"] == found["stream"]["last_sequence"] == 2
    assert {it["name"] for it in found["tables"]} == {"public.orders", "public.items"}
    orders = next(it for it in later["tables"] if it["name"] == "public.orders")
    assert orders["capture"] == "relay"
    assert orders["changes"]["update"] == 1
    assert "change log" in found["unavailable"]["history"]


async def test_what_needs_the_database_is_refused_with_a_sentence(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer
) -> None:
    paths = ("history", "history/public.orders/1", "transactions/1", "timeline")
    async with (
        gateway_process(*arguments(engine, nats)) as gateway,
        httpx.AsyncClient(base_url=gateway.address) as client,
    ):
        answers = [await client.get(f"/v1/{path}") for path in paths]
        readers = (await client.get("/v1/readers")).json()
    assert [it.status_code for it in answers] == [501] * len(paths)
    assert all("rowsignal serve" in it.json()["detail"] for it in answers)
    assert readers["consumers"] == []


async def test_a_relay_that_is_killed_is_silent_and_one_that_begins_is_at_work(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway_process(*arguments(engine, nats)) as gateway:
        await status_when(gateway, lambda it: it["relay"]["state"] == "at work")
        await relayed.kill()
        silent = await status_when(gateway, lambda it: it["relay"]["state"] == "silent")
        async with httpx.AsyncClient(base_url=gateway.address) as client:
            found = (await client.get("/v1/doctor")).json()["findings"]
        async with relay_process(engine, nats.url):
            await status_when(gateway, lambda it: it["relay"]["state"] == "at work")
    assert silent["ready"]  # streams go on, and can be resumed
    assert found[0]["severity"] == "error"
    assert "No relay" in found[0]["message"]


async def test_nats_that_is_away_is_told_and_that_it_is_back(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with gateway_process(*arguments(engine, nats)) as gateway:
        await status_when(gateway, lambda it: it["ready"])
        await nats.kill()
        away = await status_when(gateway, lambda it: not it["ready"])
        await nats.start()
        await status_when(gateway, lambda it: it["ready"] and it["relay"]["state"] == "at work")
    assert away["state"] == "degraded"
    assert away["relay"]["state"] == "unknown"
    assert "NATS" in away["reason"]


async def test_a_grant_sees_its_tables_only(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWSIGNAL_TOKEN_SECRET", SECRET)
    tables = {"public.orders": {}}
    process = gateway_process(*arguments(engine, nats))
    async with process as gateway, httpx.AsyncClient(base_url=gateway.address) as client:
        nothing = await client.get("/v1/status")
        some = await client.get("/v1/status", headers=bearer(tables, status=True))
        refused = await client.get("/v1/status", headers=bearer(tables))
        doctor = await client.get("/v1/doctor", headers=bearer(tables, status=True))
    assert (nothing.status_code, refused.status_code, doctor.status_code) == (401, 403, 403)
    assert [it["name"] for it in some.json()["tables"]] == ["public.orders"]


async def test_tables_and_columns_that_come_later_are_offered(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> None:
    await make_tables(engine, row_values=True)
    async with relaying(engine, nats.url, tables=[Order]):
        await stream.next()
        async with gateway_process(*arguments(engine, nats)) as gateway:
            async with relaying(engine, nats.url, tables=[Order, Item]):
                pass
            await _offered_later(engine, nats, gateway)


async def _offered_later(engine: AsyncEngine, nats: NatsServer, gateway: GatewayProcess) -> None:
    async with reading(gateway.port, "/v1/changes/orders") as reader:
        await reader.until(lambda it: it.name == "heartbeat" and bool(it.id))
        await execute(engine, "alter table orders add column extra integer default 7")
        await execute(engine, "insert into orders values (1, 'open', 1, 1, 'x')")
        first = await reader.until("insert")
        bye = await reader.until("bye")
        last_id = reader.last_id
    await execute(engine, "insert into orders values (2, 'open', 1, 1, 'x', 8)")
    headers = {"Last-Event-ID": last_id}
    async with reading(gateway.port, "/v1/changes/orders", headers=headers) as reader:
        second = await reader.until("insert")
    assert (first.key, second.key) == (1, 2)
    assert bye.data["reason"] == "columns"
    assert second.data["row"]["extra"] == 8


async def test_the_doctor_examines_stream_and_relay(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer, client: Client
) -> None:
    database = engine.url.database or ""
    good = await stream_health(nats.url, database)
    assert good is not None
    assert await unrelayed_seconds(engine, good) == 0
    assert {it.severity for it in stream_findings(good, good.name)} == {Severity.OK}
    await relayed.kill()
    await execute(engine, "update orders set total = 3 where id = 1")
    silent = await stream_health(nats.url, database)
    assert silent is not None
    assert silent.relay_lag is None
    assert (await unrelayed_seconds(engine, silent) or 0) > 0
    assert await stream_health(nats.url, "absent") is None


async def test_the_command_says_that_no_relay_is_at_work(
    relayed: RelayProcess, engine: AsyncEngine, nats: NatsServer
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    well = await _examined(url, nats.url)
    await relayed.kill()
    messages = [well, await _examined(url, nats.url), await _examined(url, "nats://127.0.0.1:1")]
    assert messages[0]["relay"] == messages[0]["stream"] == "ok"
    assert messages[1]["relay"] == "error"
    assert messages[2]["NATS"] == "error"


async def _examined(url: str, nats: str) -> dict[str, str]:
    """Return the severity by subject, as the command writes it."""
    options = ("--url", url, "--nats", nats, "--json")
    process = await asyncio.create_subprocess_exec(COMMAND, "doctor", *options, stdout=-1)
    written, _ = await process.communicate()
    return {it["subject"]: it["severity"] for it in json.loads(written)["findings"]}


async def test_limits_that_are_near_are_found(client: Client) -> None:
    js = client.jetstream()
    await js.add_stream(
        api.StreamConfig(
            name=stream_name("small"), subjects=["small"], max_bytes=2000, discard="new"
        )
    )
    for _ in range(3):
        await js.publish("small", b"x" * 590)
    health = await stream_health(client, "small")
    assert health is not None
    messages = " ".join(it.message for it in stream_findings(health, health.name))
    assert "goes back 0 minutes only" in messages
    assert "refuses new messages" in messages
