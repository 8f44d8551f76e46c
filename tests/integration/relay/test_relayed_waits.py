"""Waits that take their hints from a relay: what ends them, and what goes away meanwhile."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import NullPool

from rowsignal import Operation, watch
from rowsignal.dispatcher import Dispatcher
from rowsignal.doctor import Severity, diagnose
from rowsignal.hooks import Hooks
from rowsignal.listener import Listener
from rowsignal.relay import Relay, StreamSettings, stream_name, subject_of
from rowsignal.relay.descriptions import Descriptions
from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from rowsignal.triggers import install_triggers
from support.event_streams import reading
from support.nats_server import NatsServer, client_of, kill_leader, nats_cluster
from support.relayed_waits import ROWS, Application, application, hinted_by
from support.relays import StreamReader, relay_process, relaying
from support.shop import Line, Order
from support.waits import NOTIFIED_ONLY, begin_wait, until_equal, until_listening, until_mode
from support.wal import WalShop
from support.web_server import Site, serving

# A handshake that fails while a server goes away: nats-py drops its writer without closing it.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

PATIENCE = 30.0


@pytest.fixture
async def app(engine: AsyncEngine) -> AsyncIterator[Application]:
    async with application(engine) as app:
        yield app


@pytest.fixture
async def relayed(
    engine: AsyncEngine, nats: NatsServer, stream: StreamReader
) -> AsyncIterator[str]:
    """Provide NATS with a relay at work, whose engine is not the application's."""
    async with relaying(engine, nats.url):
        await stream.next()
        yield nats.url


class Reads(Hooks):
    """Counts the rows that were read, and the messages that could not be."""

    def __init__(self) -> None:
        self.rows = 0
        self.refused = 0

    def rows_read(self, *, table: str, rows: int, seconds: float) -> None:
        self.rows += rows

    def notified(self, *, accepted: bool) -> None:
        self.refused += not accepted


async def _listener_of(site: Site) -> dict[str, Any]:
    """Return what the status says of the listener."""
    found: dict[str, Any] = (await site.client.get("/v1/status")).json()["listener"]
    return found


async def test_a_message_of_the_relay_ends_a_wait_and_nothing_listens(
    app: Application, relayed: str
) -> None:
    async with Listener(app.engine):
        assert await app.listening() == 1  # else the count below would prove nothing
    async with hinted_by(relayed, app.engine) as listener:
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        waiting = begin_wait(app.engine, Order, 7)
        await until_mode(app.engine, "armed")
        assert (listener.state.mode, listener.state.origin) == ("listening", "nats")
        await until_equal(app.listening, 0)
        await app.pay(7)
        assert (await waiting).total == 1


async def test_an_idle_application_holds_no_connection_to_postgresql(
    app: Application, relayed: str
) -> None:
    async with hinted_by(relayed, app.engine):
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        waiting = begin_wait(app.engine, Order, 7)
        await until_mode(app.engine, "armed")
        await app.engine.dispose()
        await until_equal(app.connections, 0)
        await app.pay(7)
        assert (await waiting).total == 1


async def test_messages_of_other_rows_cause_no_read(app: Application, relayed: str) -> None:
    reads = Reads()
    async with hinted_by(relayed, app.engine, hooks=reads) as listener:
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        waiting = begin_wait(app.engine, Order, 7)
        await until_mode(app.engine, "armed")
        before, heard = reads.rows, listener.state.notifications
        for number in range(10, 30):
            await app.pay(number)
        async with asyncio.timeout(PATIENCE):
            while listener.state.notifications < heard + 20:
                await asyncio.sleep(0.01)
        assert reads.rows == before
        await app.pay(7)
        assert (await waiting).total == 1


async def test_a_burst_ends_every_wait(app: Application, relayed: str) -> None:
    async with hinted_by(relayed, app.engine):
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        waits = [begin_wait(app.engine, Order, id_) for id_ in range(1, ROWS + 1)]
        await until_mode(app.engine, "armed")
        for id_ in range(1, ROWS // 2 + 1):
            await app.pay(id_)
        await app.pay(*range(ROWS // 2 + 1, ROWS + 1))
        assert {order.total for order in await asyncio.gather(*waits)} == {1}


async def test_a_relay_that_is_killed_is_replaced_and_no_wait_is_lost(
    app: Application, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with relay_process(engine, nats.url) as first:
        await first.until("relaying")
        async with relay_process(engine, nats.url) as second, hinted_by(nats.url, app.engine):
            Dispatcher.of(app.engine, NOTIFIED_ONLY)
            waits = [begin_wait(app.engine, Order, id_) for id_ in (1, 2)]
            await until_mode(app.engine, "armed")
            await first.kill()
            await app.pay(1)  # while no relay is at work
            await second.until("relaying")
            await app.pay(2)
            assert {order.total for order in await asyncio.gather(*waits)} == {1}


@pytest.mark.timeout(180)
async def test_a_node_of_three_dies_and_no_wait_is_lost(
    app: Application, engine: AsyncEngine, tmp_path: Path
) -> None:
    async with (
        nats_cluster(tmp_path) as cluster,
        client_of(cluster.url) as client,
        relaying(engine, cluster.url, stream=StreamSettings(replicas=3)),
        hinted_by(cluster.url, app.engine),
    ):
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        await until_listening(app.engine, "listening")
        waits = [begin_wait(app.engine, Order, id_) for id_ in (1, 2)]
        await until_mode(app.engine, "armed")
        await kill_leader(cluster, client, stream_name(engine.url.database or ""))
        await app.pay(1)
        async with asyncio.timeout(PATIENCE):
            assert (await waits[0]).total == 1
            await until_mode(app.engine, "armed")
            await app.pay(2)
            assert (await waits[1]).total == 1


async def test_without_a_relay_it_polls_until_there_is_one(
    app: Application, engine: AsyncEngine, nats: NatsServer, caplog: pytest.LogCaptureFixture
) -> None:
    async with hinted_by(nats.url, app.engine) as listener:
        assert listener.state.mode == "polling"
        assert listener.state.reason is not None
        assert "no relay" in listener.state.reason
        waiting = begin_wait(app.engine, Order, 1, interval=0.02)
        await until_mode(app.engine, "polling")
        await app.pay(1)
        assert (await waiting).total == 1
        async with relaying(engine, nats.url):
            await until_listening(app.engine, "listening")
            Dispatcher.of(app.engine).pace = NOTIFIED_ONLY
            waiting = begin_wait(app.engine, Order, 2)
            await until_mode(app.engine, "armed")
            await app.pay(2)
            assert (await waiting).total == 1
        await until_listening(app.engine, "polling")
        said = [it for it in caplog.messages if "Hints over NATS are unavailable" in it]
        # At first, and once after each time that a relay was heard: on a busy machine it may be
        # silent for too long.
        assert len(said) == 1 + listener.state.epoch, said


async def test_nats_is_killed_and_started_again(
    app: Application, relayed: str, nats: NatsServer
) -> None:
    async with hinted_by(relayed, app.engine) as listener:
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        hurried = begin_wait(app.engine, Order, 1, interval=0.02)
        await until_mode(app.engine, "armed")
        await nats.kill()
        await until_listening(app.engine, "polling")
        await app.pay(1)
        assert (await hurried).total == 1
        patient = begin_wait(app.engine, Order, 2)
        await until_mode(app.engine, "polling")
        await app.pay(2)
        await nats.start()
        assert (await patient).total == 1  # read when NATS was there again
        await until_mode(app.engine, "armed", "busy")
        assert listener.state.epoch == 2


async def test_nats_that_is_stopped_makes_waits_poll(
    app: Application, relayed: str, nats: NatsServer
) -> None:
    async with hinted_by(relayed, app.engine):
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        hurried = begin_wait(app.engine, Order, 1, interval=0.02)
        await until_mode(app.engine, "armed")
        nats.signal(signal.SIGSTOP)
        await until_listening(app.engine, "polling")
        await app.pay(1)
        assert (await hurried).total == 1
        nats.signal(signal.SIGCONT)
        await until_listening(app.engine, "listening")
        waiting = begin_wait(app.engine, Order, 2)
        await until_mode(app.engine, "armed")
        await app.pay(2)
        assert (await waiting).total == 1


async def test_a_listener_that_starts_without_nats_polls(
    app: Application, nats: NatsServer
) -> None:
    await nats.kill()
    async with hinted_by(nats.url, app.engine) as listener:
        assert listener.state.mode == "polling"
        assert "NATS does not answer" in str(listener.state.reason)
        waiting = begin_wait(app.engine, Order, 1, interval=0.02)
        await until_mode(app.engine, "polling")
        await app.pay(1)
        assert (await waiting).total == 1


async def test_a_table_that_is_not_carried_is_polled_until_a_relay_carries_it(
    app: Application,
    engine: AsyncEngine,
    nats: NatsServer,
    client: Client,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await install_triggers(engine, [Line], log=True)
    caplog.set_level(logging.INFO, "rowsignal")
    async with hinted_by(nats.url, app.engine) as listener:
        async with relaying(engine, nats.url, tables=[Order]):
            await until_listening(app.engine, "listening")
            waiting = begin_wait(app.engine, Line, (1, 1), interval=0.02)
            await until_mode(app.engine, "polling", table="lines")
            async with asyncio.timeout(PATIENCE):
                while not listener.state.unrelayed:
                    await asyncio.sleep(0.01)
            assert listener.state.unrelayed == {"public.lines"}
            await app.writer.execute("update lines set quantity = quantity + 1")
            assert (await waiting).quantity == 2
        waiting = begin_wait(app.engine, Line, (1, 1))
        async with relaying(engine, nats.url, tables=[Line]):
            await until_mode(app.engine, "armed", table="lines")
            assert not listener.state.unrelayed
            await app.writer.execute("update lines set quantity = quantity + 1")
            assert (await waiting).quantity == 3
            described = await Descriptions(client, engine.url.database or "").load()
            assert list(described) == [("public", "lines")]  # orders are not relied on any more
    said = [it for it in caplog.messages if "not carried" in it]
    assert said == ["public.lines is not carried by a relay, polling"]


FORGED = [
    b"",
    b"\xff\xfe",
    b"not json",
    b"[]",
    b"[" * 100_000,
    b'{"operation": "update"}',
    b'{"operation": "explode", "key": {"id": 1}}',
    b'{"operation": ["update"], "key": {"id": 1}}',
    b'{"operation": "update", "key": {"id": {"a": 1}}}',
    b'{"operation": "update", "key": {"id": [1]}}',
    b'{"operation": "update", "key": {"id": null}}',
    b'{"operation": "update", "key": [1]}',
    b'{"operation": "update", "key": "id"}',
    b'{"operation": "update", "key": {"other": 1}}',
    b'{"operation": "update", "key": {"id": 1e400}}',
    b'{"operation": "update", "key": {"id": ' + b"9" * 5000 + b"}}",
    b'{"operation": "reset"}',
    b'{"operation": "update", "key": {"id": 1}, "row": "' + b"x" * (1024 * 1024 - 1000) + b'"}',
]


DESCRIBED = {"schema": "public", "name": "orders", "carried": ["id"], "capture": "log"}


async def publish_forged(client: Client, *subjects: str) -> None:
    """Publish all of it to some subjects, as any program with the right could."""
    for subject in subjects:
        for payload in FORGED:
            await client.publish(subject, payload, headers={"Rowsignal-Transaction": "9" * 40})
    await client.flush()


async def test_forged_messages_end_no_wait_and_keep_none_from_ending(
    app: Application, relayed: str, engine: AsyncEngine, client: Client
) -> None:
    database, reads = engine.url.database or "", Reads()
    async with hinted_by(relayed, app.engine, hooks=reads) as listener:
        Dispatcher.of(app.engine, NOTIFIED_ONLY)
        waits = [begin_wait(app.engine, Order, id_) for id_ in (1, 2)]
        await until_mode(app.engine, "armed")
        await publish_forged(
            client,
            subject_of(database, ("public", "orders")),
            subject_of(database),
            f"rowsignal-relay.{database}",
        )
        async with asyncio.timeout(PATIENCE):
            while reads.refused < len(FORGED) - 3:
                await asyncio.sleep(0.01)
        assert not any(wait.done() for wait in waits)
        await publish_forged(client, f"$KV.rowsignal-tables.{database}.public.orders")
        await client.publish(f"$KV.rowsignal-tables.{database}.public.orders", b"not json")
        async with asyncio.timeout(PATIENCE):
            while not listener.state.unrelayed:
                await asyncio.sleep(0.01)
        assert not any(wait.done() for wait in waits)
        await Descriptions(client, database).store([DESCRIBED], 1)
        await app.pay(1, 2)
        assert {order.total for order in await asyncio.gather(*waits)} == {1}
        assert listener.state.mode == "listening"


async def test_a_log_is_followed_by_the_messages_of_its_tables(
    app: Application, engine: AsyncEngine, nats: NatsServer
) -> None:
    await install_triggers(engine, [Line], log=True)
    own = create_async_engine(engine.url)
    async with relaying(engine, nats.url), hinted_by(nats.url, own):
        await until_listening(own, "listening")
        async with watch(own, Order) as orders, watch(own, Line) as lines:
            await app.pay(5)
            change = await anext(orders)
            assert (change.operation, change.key) == (Operation.UPDATE, {"id": 5})
            await app.writer.execute("update lines set quantity = 9")
            assert (await anext(lines)).key == {"order_id": 1, "no": 1}
    await own.dispose()


class Base(DeclarativeBase):
    """The base of the one table whose changes come from the WAL."""


class Thing(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    v: Mapped[int]


async def test_a_wait_relies_on_a_relay_that_reads_the_wal(
    wal_shop: WalShop, nats: NatsServer
) -> None:
    await wal_shop.insert(1)
    own = create_async_engine(wal_shop.engine.url)
    async with relaying(wal_shop.engine, nats.url, capture="wal"), hinted_by(nats.url, own):
        await until_listening(own, "listening")
        Dispatcher.of(own, NOTIFIED_ONLY)
        waiting = begin_wait(own, Thing, 1)
        await until_mode(own, "armed", table="item")
        await wal_shop.sql.execute("update item set v = 5")
        assert (await waiting).v == 5
    await own.dispose()


async def test_the_doctor_tells_whether_hints_arrive(
    app: Application, engine: AsyncEngine, nats: NatsServer
) -> None:
    without = (await diagnose(app.engine, listen_url=nats.url))[-1]
    assert (without.severity, without.subject) == (Severity.ERROR, "listening")
    assert "no relay" in without.message
    assert "rowsignal relay" in str(without.fix)
    async with relaying(engine, nats.url):
        await until_relayed(app.engine, nats.url)
    await nats.kill()
    away = (await diagnose(app.engine, listen_url=nats.url))[-1]
    assert "NATS does not answer" in away.message


async def until_relayed(engine: AsyncEngine, url: str) -> None:
    """Return when the doctor hears a relay."""
    async with asyncio.timeout(PATIENCE):
        while (await diagnose(engine, listen_url=url))[-1].severity is not Severity.OK:
            await asyncio.sleep(0.1)


async def test_the_service_streams_by_the_messages_of_a_relay(
    app: Application, engine: AsyncEngine, relayed: str, tmp_path: Path
) -> None:
    settings = Settings(
        database_url=engine.url.render_as_string(hide_password=False),
        listen_url=relayed,
        tables="orders",
        ticket_dir=tmp_path / "tickets",
        heartbeat=0.3,
    )
    async with (
        serving(create_app(settings)) as site,
        reading(site.port, "/v1/changes/orders") as reader,
    ):
        await reader.until("heartbeat")
        async with asyncio.timeout(PATIENCE):
            while (await _listener_of(site))["state"] != "listening":
                await asyncio.sleep(0.05)
        assert (await _listener_of(site))["origin"] == "nats"
        assert (await _listener_of(site))["unrelayed"] == 0
        await app.pay(9)
        assert (await reader.until("update")).key == 9


async def test_a_relay_refuses_an_engine_that_it_gives_hints_to(
    app: Application, relayed: str
) -> None:
    async with hinted_by(relayed, app.engine):
        with pytest.raises(ValueError, match="engine of its own"):
            await Relay(app.engine, relayed).run()


async def test_stopping_leaves_nothing(
    app: Application, engine: AsyncEngine, nats: NatsServer
) -> None:
    async with relay_process(engine, nats.url) as relay:
        await relay.until("relaying")
        before = asyncio.all_tasks()
        for _ in range(5):
            async with hinted_by(nats.url, app.engine):
                waits = [begin_wait(app.engine, Order, id_) for id_ in range(1, 20)]
                await until_mode(app.engine, "armed", "settling")
                for wait in waits:
                    wait.cancel()
                await asyncio.gather(*waits, return_exceptions=True)
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before


RUNS = 60 if "ROWSIGNAL_STRESS" not in os.environ else 1000

ABANDONING = """
import asyncio, gc, sys
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool
from rowsignal.dispatcher import Dispatcher
from rowsignal.listener import Listener, listener
from support.shop import Order
from support.waits import begin_wait, until_mode
url, nats, runs = sys.argv[1], sys.argv[2], int(sys.argv[3])
engine = create_async_engine(url, poolclass=NullPool)

async def abandon():
    await Listener(engine, listen_url=nats).__aenter__()
    waiting = begin_wait(engine, Order, 1)
    await until_mode(engine, "armed", "settling")
    assert not waiting.done()

for _ in range(runs):
    asyncio.run(abandon())
    assert len(listener._registry) <= 2
gc.collect()
assert sum(isinstance(it, Dispatcher) for it in gc.get_objects()) <= 2
"""


@pytest.mark.timeout(900)
async def test_event_loops_that_are_over_leave_nothing(
    app: Application, relayed: str, nats: NatsServer
) -> None:
    url = app.engine.url.render_as_string(hide_password=False)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "default", "-c", ABANDONING, url, relayed, str(RUNS)),
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": "tests"},
    )
    _, said = await process.communicate()
    assert (process.returncode, said.decode()) == (0, "")
    await until_equal(app.connections, 0)


async def test_six_event_loops_share_an_engine(app: Application, relayed: str) -> None:
    shared = create_async_engine(app.engine.url, poolclass=NullPool)
    armed = threading.Barrier(7)

    async def wait() -> int:
        async with hinted_by(relayed, shared):
            Dispatcher.of(shared, NOTIFIED_ONLY)
            waits = [begin_wait(shared, Order, 1) for _ in range(5)]
            await until_mode(shared, "armed")
            await asyncio.to_thread(armed.wait, 60)
            return int(max(order.total for order in await asyncio.gather(*waits)))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(6) as threads:
        runs = [loop.run_in_executor(threads, asyncio.run, wait()) for _ in range(6)]
        await asyncio.to_thread(armed.wait, 60)
        await app.pay(1)
        assert await asyncio.gather(*runs) == [1] * 6


def test_without_the_extra_the_listener_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['nats'] = None\n"
        "from sqlalchemy.ext.asyncio import create_async_engine\n"
        "from rowsignal import Listener, MissingExtraError\n"
        "engine = create_async_engine('postgresql+asyncpg://x@127.0.0.1/x')\n"
        "Listener(engine)\n"
        "try: Listener(engine, listen_url='nats://localhost')\n"
        "except MissingExtraError as error: print(error)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert "pip install 'rowsignal[nats]'" in found.stdout
