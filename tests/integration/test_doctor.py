import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.doctor import Finding, Severity, diagnose
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.payload import LOCK_CLASS
from rowsignal.triggers import install_triggers
from support.command_line import CommandLine, connect
from support.pgbouncer import pgbouncer
from support.proxy import through_proxy

TABLES = "create table orders (id int primary key, status text);"


@pytest.fixture
async def orders(engine: AsyncEngine) -> AsyncEngine:
    """A database with one table."""
    await execute(engine, TABLES)
    return engine


async def execute(engine: AsyncEngine, *statements: str) -> None:
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))


async def about(engine: AsyncEngine, subject: str) -> list[Finding]:
    return [finding for finding in await diagnose(engine) if finding.subject == subject]


def worst(findings: list[Finding]) -> Severity:
    return max((finding.severity for finding in findings), key=list(Severity).index)


async def test_a_database_in_order_is_called_so(orders: AsyncEngine) -> None:
    await install_triggers(orders, "orders")

    findings = await diagnose(orders)

    assert worst(findings) is Severity.OK
    assert {finding.subject for finding in findings} == {
        "server",
        "schema",
        "triggers",
        "queue",
        "listening",
    }


@pytest.mark.usefixtures("no_schema")
async def test_a_database_without_triggers_is_told_how_to_get_some(orders: AsyncEngine) -> None:
    (finding,) = await about(orders, "schema")

    assert finding.severity is Severity.WARNING
    assert finding.fix == "rowsignal install TABLE"


@pytest.mark.parametrize(
    "harm",
    [
        "alter table orders disable trigger rowsignal_hint",
        "drop trigger rowsignal_hint on orders",
        (
            "create or replace function rowsignal.capture_hint_v2() returns trigger"
            " language plpgsql as 'begin return null; end'"
        ),
    ],
)
async def test_broken_triggers_are_fixed_by_the_named_command(
    orders: AsyncEngine, harm: str, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await install_triggers(orders, "orders")
    await execute(orders, harm)
    (finding,) = await about(orders, "public.orders")
    command = re.fullmatch(r"rowsignal (\w+) (\S+)", finding.fix or "")
    assert command is not None

    line = CommandLine(database_url, capsys)
    await asyncio.to_thread(line.on_database, command[1], command[2])

    assert await about(orders, "public.orders") == []


async def test_a_model_without_triggers_is_an_error(orders: AsyncEngine) -> None:
    findings = await diagnose(orders, ["orders"])

    (finding,) = [finding for finding in findings if "orders" in finding.subject]
    assert (finding.severity, finding.fix) == (Severity.ERROR, "rowsignal install public.orders")


async def test_revoked_functions_are_granted_again_by_the_fix(orders: AsyncEngine) -> None:
    await install_triggers(orders, "orders")
    revoked = "pg_catalog.pg_try_advisory_lock(int, int)"
    await execute(orders, f"revoke execute on function {revoked} from public")

    (finding,) = await about(orders, "rights")
    assert finding.severity is Severity.ERROR
    await execute(orders, finding.fix or "")

    assert await about(orders, "rights") == []


async def test_the_holder_of_an_advisory_lock_is_named(
    orders: AsyncEngine, database_url: str
) -> None:
    holder = await connect(database_url)
    await holder.execute("set application_name = 'nightly job'")
    await holder.execute(f"select pg_advisory_lock({LOCK_CLASS}, 5)")

    (finding,) = await about(orders, "advisory locks")
    assert "nightly job" in finding.message
    await execute(orders, finding.fix or "")

    assert await about(orders, "advisory locks") == []
    await holder.close()


async def test_roles_that_switch_triggers_off_are_found(orders: AsyncEngine) -> None:
    async with orders.connect() as connection:
        name = await connection.scalar(text("select current_database()"))
    await execute(
        orders,
        f'alter role postgres in database "{name}" set session_replication_role = replica',
    )

    (finding,) = await about(orders, "roles")
    assert "postgres" in finding.message
    await execute(orders, finding.fix or "")

    assert await about(orders, "roles") == []


async def test_logged_tables_whose_order_may_turn_round_are_noted(orders: AsyncEngine) -> None:
    await install_triggers(orders, "orders", log=True)
    await execute(
        orders,
        "create function echo() returns trigger language plpgsql as 'begin return null; end'",
        "create trigger echo after update on orders for each row execute function echo()",
    )

    (finding,) = await about(orders, "orders")

    assert finding.severity is Severity.NOTE
    assert "echo" in finding.message


async def test_a_log_without_pruning_is_reported(orders: AsyncEngine) -> None:
    await install_triggers(orders, "orders", log=True)
    await execute(orders, "insert into orders values (1, 'new')")
    (fresh,) = await about(orders, "log")
    await execute(orders, "update rowsignal.change set captured_at = now() - interval '9 days'")
    (old,) = await about(orders, "log")

    assert fresh.severity is Severity.OK
    assert (old.severity, "9.0 days" in old.message) == (Severity.WARNING, True)
    assert "rowsignal prune" in (old.fix or "")


async def test_what_a_role_may_not_see_is_said_and_ends_nothing(
    orders: AsyncEngine, database_url: str
) -> None:
    await install_triggers(orders, "orders", log=True)
    await execute(
        orders, "do 'begin create role guest login; exception when duplicate_object then null; end'"
    )
    guest = create_async_engine(database_url.replace("postgres@", "guest@"))

    findings = await diagnose(guest)
    await guest.dispose()

    (unseen,) = [finding for finding in findings if finding.subject == "log"]
    assert unseen.severity is Severity.NOTE
    assert "permission denied" in unseen.message
    assert findings[-1].subject == "listening"


async def test_a_transaction_pooler_is_recognised(
    orders: AsyncEngine, server: EmbeddedPostgres, database_url: str
) -> None:
    name = orders.url.database
    async with pgbouncer(server) as port:
        pooled = create_async_engine(
            f"postgresql+asyncpg://postgres@127.0.0.1:{port}/{name}",
            connect_args={"statement_cache_size": 0},
        )
        without = (await diagnose(pooled))[-1]
        with_address = (await diagnose(pooled, listen_url=database_url))[-1]
        await pooled.dispose()

    assert (without.severity, with_address.severity) == (Severity.ERROR, Severity.OK)
    assert "pooler" in without.message
    assert "--listen-url" in (without.fix or "")


async def test_an_address_that_does_not_answer_is_told_in_words(
    orders: AsyncEngine, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rowsignal.doctor.diagnosis.ANSWER", 0.3)
    async with through_proxy(database_url) as (proxy, silent):
        proxy.stall()
        listening = (await diagnose(orders, listen_url=silent))[-1]

    assert listening.severity is Severity.ERROR
    assert listening.message.endswith("polls: there was no answer in time.")


@pytest.fixture(scope="module")
def strained() -> Iterator[EmbeddedPostgres]:
    """Run a server with little room, two-phase commits and a standby that never answers."""
    settings = {
        "max_connections": "20",
        "max_locks_per_transaction": "10",
        "max_prepared_transactions": "5",
        "synchronous_standby_names": "nobody",
        "synchronous_commit": "local",
        "max_notify_queue_pages": "64",
    }
    with EmbeddedPostgres() as probe:
        if int(probe.version.split(".")[0]) < 17:
            del settings["max_notify_queue_pages"]
    with EmbeddedPostgres(settings=settings) as server:
        yield server


@pytest.fixture
async def strained_engine(strained: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(strained.url)
    await execute(engine, "drop table if exists orders", TABLES)
    yield engine
    await engine.dispose()


async def test_two_phase_commits_and_standbys_are_warned_of_where_tables_notify(
    strained_engine: AsyncEngine,
) -> None:
    await install_triggers(strained_engine, "orders")
    hinted = await about(strained_engine, "two-phase commits")
    await install_triggers(strained_engine, "orders", log=True, notify=False)

    assert worst(hinted) is Severity.WARNING
    assert "orders" in hinted[0].message
    assert await about(strained_engine, "two-phase commits") == []
    assert worst(await about(strained_engine, "standbys")) is Severity.NOTE


async def test_a_lock_table_that_fills_up_is_an_error(strained_engine: AsyncEngine) -> None:
    async with strained_engine.connect() as connection:
        await connection.execute(
            text("select pg_advisory_xact_lock(n) from generate_series(1, 230) n")
        )

        (finding,) = await about(strained_engine, "locks")

    assert finding.severity is Severity.ERROR
    assert "max_locks_per_transaction" in (finding.fix or "")


async def test_a_full_notification_queue_is_an_error(
    strained: EmbeddedPostgres, strained_engine: AsyncEngine
) -> None:
    if int(strained.version.split(".")[0]) < 17:
        pytest.skip("the queue of this version holds gigabytes")
    sleeper = await connect(strained.url)
    await sleeper.execute("listen busy")
    await sleeper.execute("begin; select 1")
    await execute(
        strained_engine,
        "select pg_notify('busy', n || repeat('x', 7900)) from generate_series(1, 40) n",
    )

    (full,) = await about(strained_engine, "queue")
    await sleeper.close()

    assert full.severity is Severity.ERROR
    assert "does not read" in full.message


def test_the_command_fails_on_errors_only(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = CommandLine(database_url, capsys)
    asyncio.run(line.execute(TABLES))

    warned = line.on_database("doctor")
    failed = line.on_database("doctor", "orders", "--json")

    assert (warned.code, failed.code) == (0, 1)
    assert "Fixes:" in warned.out
    document = json.loads(failed.out)
    assert document["ok"] is False
    assert {"severity", "subject", "message", "fix"} == set(document["findings"][0])
