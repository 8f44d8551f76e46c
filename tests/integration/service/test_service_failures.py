"""The service while what it depends on fails: a pooler in between, a crash, a restart, a cut."""

import asyncio
import contextlib
from contextlib import asynccontextmanager
from itertools import count

import asyncpg
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import select
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import EmbeddedPostgresError
from rowsignal.metrics import PrometheusHooks
from rowsignal.postgres.connections import suit_pooler
from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from rowsignal.service.tasks import keep_running
from rowsignal.triggers import install_triggers
from support.event_streams import Item, Order, execute, make_tables, reading
from support.pgbouncer import pgbouncer, settings_in_pool
from support.proxy import proxied
from support.web_server import serving

ORDERS = "/v1/changes/orders"
SENTINEL = 999_999
PATIENCE = 30.0
numbers = count()


@pytest.fixture(scope="module")
def fragile():
    """Provide a server that the tests of this file may mistreat."""
    with EmbeddedPostgres(port=0) as server:
        yield server


@pytest.fixture
async def fragile_engine(fragile):
    """Provide an engine on a fresh database of the fragile server, with the tables."""
    name = f"fragile_{next(numbers)}"
    connection = await asyncpg.connect(fragile.dsn)
    await connection.execute(f"create database {name}")
    await connection.close()
    engine = create_async_engine(fragile.url_of(name), pool_pre_ping=True)
    await make_tables(engine)
    yield engine
    await engine.dispose()


@asynccontextmanager
async def service(url, tmp_path, **options):
    settings = Settings(
        database_url=url,
        ticket_dir=tmp_path / "tickets",
        heartbeat=0.5,
        write_interval=0.005,
        log_level="warning",
        **options,
    )
    async with serving(create_app(settings)) as site:
        yield site


@asynccontextmanager
async def pooled_service(server, engine, tmp_path, **options):
    """Serve through PgBouncer; yield the site, and an engine that writes through it, too."""
    await make_tables(engine)
    await install_triggers(engine, Item)
    database = engine.url.database
    # What differs from our own settings, on the pool's connections, has been left there by us.
    await execute(
        engine,
        f"alter database {database} set bytea_output = 'escape'",
        f"alter database {database} set extra_float_digits = 0",
    )
    async with pgbouncer(server) as port:
        url = f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{database}"
        writer = create_async_engine(url)
        await suit_pooler(writer)
        async with service(url, tmp_path, **options) as site:
            yield site, writer
        names = ("bytea_output", "extra_float_digits", "enable_seqscan", "plan_cache_mode")
        found = await settings_in_pool(port, database, *names)
        assert found == {("escape", "0", "on", "auto")}
        await writer.dispose()


async def insert(engine, *keys):
    """Insert orders in one transaction each, several at once."""
    statements = [f"insert into orders values ({key}, 'open', 1, 7, '')" for key in keys]
    await asyncio.gather(*(execute(engine, statement) for statement in statements))


async def begun(stream):
    """Return when a logged stream has a place of its own: all that is committed later comes."""
    await stream.until(lambda event: event.id != "")


def inserted(stream):
    return [event.key for event in stream.events if event.name == "insert"]


async def inserted_by_the_end(stream, engine):
    """Return the keys that have arrived when one that is committed last does, in order."""
    await insert(engine, SENTINEL)
    await stream.until(lambda event: event.key == SENTINEL)
    assert {"reset", "bye"}.isdisjoint(event.name for event in stream.events)
    return sorted(key for key in inserted(stream) if key != SENTINEL)


async def is_exact_over_a_break(site, writer):
    """Cut a stream in the middle, write on, and resume: every row arrives once."""
    async with reading(site.port, ORDERS) as stream:
        await begun(stream)
        await insert(writer, *range(20))
        while len(inserted(stream)) < 10:
            await stream.until("insert")
        first, position = inserted(stream), stream.last_id
        stream.cut()
    await insert(writer, *range(20, 40))
    async with reading(site.port, ORDERS, headers={"Last-Event-ID": position}) as stream:
        await insert(writer, *range(40, 60))
        rest = await inserted_by_the_end(stream, writer)
    assert sorted(first + rest) == list(range(60))


async def rows_of(engine):
    async with engine.connect() as connection:
        found = await connection.execute(select(Order.id, Order.status))
        return dict(found.all())


async def shown_by_the_end(stream, engine):
    """Apply a stream that began with a snapshot; return the rows that a reader then has."""
    await execute(engine, "update orders set status = 'last' where id = 1")
    rows = {}
    await stream.until(lambda it: it.key == 1 and it.data.get("row", {}).get("status") == "last")
    for event in stream.events:
        if event.name == "delete":
            del rows[event.key]
        elif "row" in event.data:
            rows[event.key] = event.data["row"]["status"]
    return rows


async def until_ready(site, *, status):
    async with asyncio.timeout(PATIENCE):
        while (answer := await site.client.get("/health/ready")).status_code != status:
            await asyncio.sleep(0.02)
    return answer.json()


async def until_listener(site, state):
    async with asyncio.timeout(PATIENCE):
        while True:
            found = (await site.client.get("/v1/status")).json()["listener"]
            if found["state"] == state:
                return found
            await asyncio.sleep(0.02)


async def test_a_listen_url_past_the_pooler_makes_all_streams_work(
    engine, server, database_url, tmp_path
):
    options = {"listen_url": database_url}
    async with pooled_service(server, engine, tmp_path, **options) as (site, writer):
        async with reading(site.port, "/v1/changes/items") as hinted:
            await hinted.until("heartbeat")
            await is_exact_over_a_break(site, writer)
            await execute(writer, "insert into items values (1, 'few', 2)")
            insert = await hinted.until("insert")
            assert insert.data["row"] == {"order_id": 1, "name": "few", "amount": 2}
        status = (await site.client.get("/v1/status")).json()
    assert (status["listener"]["state"], status["ready"]) == ("listening", True)
    assert status["listener"]["reconnects"] == 0


async def test_without_a_listen_url_it_says_so_and_logged_streams_stay_exact(
    engine, server, tmp_path
):
    async with pooled_service(server, engine, tmp_path) as (site, writer):
        status = (await site.client.get("/v1/status")).json()
        assert status["listener"]["state"] == "polling"
        assert "transaction pooler" in status["listener"]["reason"]
        assert "rowsignal_listener_up 0.0" in (await site.client.get("/metrics")).text
        assert await until_ready(site, status=200) == {"status": "ready"}
        await is_exact_over_a_break(site, writer)
        await execute(
            writer, "insert into orders values (1, 'open', 1, 7, '') on conflict do nothing"
        )
        async with reading(site.port, f"{ORDERS}?snapshot=true") as stream:
            assert await shown_by_the_end(stream, writer) == await rows_of(writer)


async def test_a_crash_is_a_reset_and_a_snapshot_goes_on(fragile, fragile_engine, tmp_path):
    url = fragile_engine.url.render_as_string(hide_password=False)
    async with service(url, tmp_path) as site:
        await insert(fragile_engine, *range(10))
        async with reading(site.port, f"{ORDERS}?snapshot=true") as stream:
            await stream.until("snapshot-end")
            await until_ready(site, status=200)
            await asyncio.to_thread(fragile.kill)
            assert (await until_ready(site, status=503))["status"] == "degraded"
            await asyncio.to_thread(fragile.restart)
            reset = await stream.until("reset")
            assert "crash" in reset.data["reason"]
            assert await stream.rest() == []
            position = stream.last_id
        assert position == "", "a browser would come back with a position of the old log"
        async with reading(site.port, f"{ORDERS}?snapshot=true") as stream:
            await stream.until("snapshot-end")
            await execute(fragile_engine, "delete from orders where id = 2")
            await insert(fragile_engine, *range(10, 20))
            shown = await shown_by_the_end(stream, fragile_engine)
            assert shown == await rows_of(fragile_engine)
            assert shown.keys() == {*range(20)} - {2}
        await until_ready(site, status=200)


async def test_a_restart_is_no_reset_and_loses_nothing(fragile, fragile_engine, tmp_path):
    url = fragile_engine.url.render_as_string(hide_password=False)
    async with service(url, tmp_path) as site, reading(site.port, ORDERS) as stream:
        await begun(stream)
        await insert(fragile_engine, *range(10))
        await asyncio.to_thread(fragile.restart)
        await insert(fragile_engine, *range(10, 20))
        assert await inserted_by_the_end(stream, fragile_engine) == list(range(20))
        await until_listener(site, "listening")
        await insert(fragile_engine, 20)
        await stream.until(lambda event: event.key == 20)


async def test_what_is_committed_while_the_network_is_cut_arrives_once(
    fragile, fragile_engine, tmp_path
):
    async with proxied(("127.0.0.1", fragile.port)) as proxy:
        database = fragile_engine.url.database
        url = f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{database}"
        async with service(url, tmp_path) as site, reading(site.port, ORDERS) as stream:
            await begun(stream)
            await insert(fragile_engine, *range(10))
            await proxy.refuse()
            await proxy.cut()
            await insert(fragile_engine, *range(10, 20))
            await until_listener(site, "reconnecting")
            await until_ready(site, status=503)
            assert max(inserted(stream), default=0) < 10
            await insert(fragile_engine, *range(20, 30))
            await proxy.start()
            assert await inserted_by_the_end(stream, fragile_engine) == list(range(30))
            await until_listener(site, "listening")


async def test_readiness_does_not_wait_for_a_database_that_hangs(fragile, fragile_engine, tmp_path):
    async with proxied(("127.0.0.1", fragile.port)) as proxy:
        database = fragile_engine.url.database
        url = f"postgresql+asyncpg://postgres@127.0.0.1:{proxy.port}/{database}"
        async with service(url, tmp_path) as site:
            await until_ready(site, status=200)
            proxy.stall()
            async with asyncio.timeout(40):
                answer = await site.client.get("/health/ready", timeout=2)
                while answer.status_code == 200:
                    await asyncio.sleep(0.05)
                    answer = await site.client.get("/health/ready", timeout=2)
            assert "not answer" in answer.json()["reason"]
            status = (await site.client.get("/v1/status", timeout=8)).json()
            assert (status["ready"], status["database"]["name"]) == (False, database)
            (orders,) = (it for it in status["tables"] if it["table"] == "orders")
            assert orders["trigger"] == "installed", "what was known is not denied"
            metrics = (await site.client.get("/metrics", timeout=2)).text
            assert "rowsignal_ready 0.0" in metrics
            proxy.resume()
            await until_ready(site, status=200)


async def fill_queue(writer):
    while True:
        await writer.execute(
            "select pg_notify('other', repeat('x', 7900) || n) from generate_series(1, 8) n"
        )


async def test_a_full_notification_queue_does_not_keep_the_service_from_starting(tmp_path):
    settings = {"max_notify_queue_pages": "64"}
    try:
        server = EmbeddedPostgres(settings=settings)
        server.start()
    except EmbeddedPostgresError:
        pytest.skip("PostgreSQL's queue has a fixed size of 8 GB before 17")
    with contextlib.ExitStack() as stack:
        stack.callback(server.stop)
        engine = create_async_engine(server.url)
        await make_tables(engine)
        sleeper, writer = await asyncpg.connect(server.dsn), await asyncpg.connect(server.dsn)
        await sleeper.execute("listen other")
        await sleeper.execute("begin; select 1")
        with pytest.raises(asyncpg.PostgresError, match="too many notifications"):
            await fill_queue(writer)
        async with service(server.url, tmp_path) as site:
            await until_listener(site, "polling")
            status = (await site.client.get("/v1/status")).json()
            assert "queue is full" in status["listener"]["reason"]
            async with reading(site.port, ORDERS) as stream:
                await begun(stream)
                await insert(engine, 1)
                await stream.until("insert")
        await sleeper.close()
        await writer.close()
        await engine.dispose()


async def test_a_task_that_fails_is_counted_and_starts_again(engine, database_url, tmp_path):
    await make_tables(engine)
    hooks, runs, enough = PrometheusHooks(CollectorRegistry()), 0, asyncio.Event()

    async def work() -> None:
        nonlocal runs
        runs += 1
        if runs == 3:
            enough.set()
        raise RuntimeError("no reason")

    task = asyncio.create_task(keep_running("probe", work, hooks))
    async with asyncio.timeout(20):
        await enough.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert hooks.restarts.labels(task="probe")._value.get() >= 2
