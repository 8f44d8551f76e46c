"""Installing in every kind of transaction: locks with a limit, turns, AUTOCOMMIT, RLS."""

import asyncio
import logging
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal import LockTimeoutError, TriggerInstallError, uninstall_triggers
from rowsignal.doctor import Severity, diagnose
from rowsignal.triggers import install_triggers, installation, trigger_status
from support.hint_listener import connected


@pytest.fixture
async def orders(engine: AsyncEngine) -> AsyncEngine:
    async with connected(engine) as owner:
        await owner.execute("create table orders (id int primary key)")
    return engine


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, 10**9])
async def test_a_lock_timeout_that_is_no_limit_is_refused(
    orders: AsyncEngine, value: float
) -> None:
    with pytest.raises(ValueError, match="give seconds above 0"):
        await install_triggers(orders, "orders", lock_timeout=value)
    with pytest.raises(ValueError, match="give seconds above 0"):
        await uninstall_triggers(orders, "orders", lock_timeout=value)


async def test_a_tiny_lock_timeout_is_not_rounded_to_forever(orders: AsyncEngine) -> None:
    async with connected(orders) as writer:
        await writer.execute("begin; insert into orders values (1)")
        with pytest.raises(LockTimeoutError, match="A table was not free"):
            await install_triggers(orders, "orders", lock_timeout=0.0004)


async def test_engines_in_autocommit_get_a_transaction(orders: AsyncEngine) -> None:
    engine = create_async_engine(orders.url, isolation_level="AUTOCOMMIT")
    (done,) = await install_triggers(engine, "orders")
    assert done.action == "installed"
    async with engine.connect() as connection:
        with pytest.raises(TriggerInstallError, match="AUTOCOMMIT: pass the engine"):
            await install_triggers(connection, "orders")
    await engine.dispose()
    plain = create_engine(
        orders.url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
    )
    (done,) = uninstall_triggers(plain, "orders")
    assert done.action == "removed"
    with (
        plain.connect() as connection,
        pytest.raises(TriggerInstallError, match="autocommit_block"),
    ):
        install_triggers(connection, "orders")
    plain.dispose()


async def test_another_dialect_is_refused() -> None:
    engine = create_engine("sqlite://")
    with pytest.raises(ValueError, match="PostgreSQL, not with sqlite"):
        install_triggers(engine, "orders")
    engine.dispose()


async def test_an_installation_waits_its_turn_longer_than_for_a_table(
    orders: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await install_triggers(orders, "orders")
    async with connected(orders) as other, connected(orders) as watcher:
        await other.execute("create table items (id int primary key)")
        await other.execute("begin; lock table rowsignal.migration in share row exclusive mode")
        waiting = asyncio.create_task(install_triggers(orders, "items", lock_timeout=0.01))
        blocked = "select count(*) from pg_locks where not granted"
        async with asyncio.timeout(60):
            while not await watcher.fetchval(blocked):
                assert not waiting.done()
                await asyncio.sleep(0)
        await other.execute("rollback")
        (done,) = await waiting
        assert done.action == "installed"
        monkeypatch.setattr(installation, "TURN_TIMEOUT", 0.01)
        await other.execute("begin; lock table rowsignal.migration in share row exclusive mode")
        with pytest.raises(LockTimeoutError, match="Another installation"):
            await install_triggers(orders, "items", lock_timeout=0.01, always=True)
        await other.execute("rollback")


async def test_row_level_security_is_told_at_install_in_status_and_in_doctor(
    orders: AsyncEngine, caplog: pytest.LogCaptureFixture
) -> None:
    async with orders.begin() as connection:
        await connection.execute(text("alter table orders enable row level security"))
    with caplog.at_level(logging.WARNING, "rowsignal.triggers"):
        (done,) = await install_triggers(orders, "orders")
    assert "Row-level security" in (done.warning or "")
    assert "Row-level security" in caplog.text
    (status,) = await trigger_status(orders, "orders")
    assert (status.state, "Row-level" in (status.warning or "")) == ("installed", True)
    found = [one for one in await diagnose(orders) if one.subject == "public.orders"]
    assert [one.severity for one in found] == [Severity.WARNING]


EDITS: dict[str, str] = {
    "an inner function that says nothing": """create or replace function
        rowsignal.hint_payload_v1(head text, operation text, key text, columns text[])
        returns text language sql set search_path = pg_catalog, pg_temp as 'select null'""",
    "a definer that was an invoker": "alter function rowsignal.capture_hint_v2() security definer",
    "an invoker that was a definer": "alter function rowsignal.prune_v3 security invoker",
    "a search path": "alter function rowsignal.wake_v2() reset search_path",
    "a function that is gone": "drop function rowsignal.queue_share_v1()",
    "a right": "grant execute on function rowsignal.prune_v2 to public",
    "a table's right": "grant select on rowsignal.change to public",
    "a closed function": "revoke execute on function rowsignal.key_value_v1 from public",
}


@pytest.mark.parametrize("edit", EDITS)
async def test_edits_of_the_schema_are_reported_and_fixed(orders: AsyncEngine, edit: str) -> None:
    settings: dict[str, Any] = {"log": True}
    await install_triggers(orders, "orders", **settings)
    async with connected(orders) as owner:
        await owner.execute(EDITS[edit])
    (status,) = await trigger_status(orders, "orders", **settings)
    assert status.state == "drifted"
    await install_triggers(orders, "orders", **settings)
    (status,) = await trigger_status(orders, "orders", **settings)
    assert (status.state, status.problem) == ("installed", None)
