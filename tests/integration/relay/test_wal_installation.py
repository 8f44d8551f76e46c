"""Installing, showing and removing capture from the WAL, and what is refused."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.doctor import Severity, diagnose
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.exceptions import MissingRightError, NotFoundError, NotWatchedError
from rowsignal.relay import (
    WalCaptureStatus,
    WalTableStatus,
    install_wal_capture,
    uninstall_wal_capture,
    wal_capture_status,
)
from support.command_line import CommandLine, Ended
from support.nats_server import NatsServer
from support.relays import StreamReader, relaying
from support.wal import WalShop

BY_INDEX = "alter table odd replica identity using index odd_u_key"


async def test_what_is_installed_is_shown(wal_shop: WalShop) -> None:
    await wal_shop.sql.execute("create table keyed (id integer primary key)")
    status = await install_wal_capture(wal_shop.engine, ["public.keyed"])
    database = wal_shop.engine.url.database or ""
    assert status == WalCaptureStatus(
        slot=f"rowsignal_{database}",
        wal_status="reserved",
        is_active=False,
        lag_bytes=status.lag_bytes,
        tables=(
            WalTableStatus("public", "item", True, None),
            WalTableStatus("public", "keyed", False, None),
        ),
    )
    assert (status.lag_bytes or 0) > 0
    slot = await wal_shop.slot()
    if "failover" in slot.keys():  # noqa: SIM118 -- a record's `in` looks at values
        assert slot["failover"] is True


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_any_name_of_a_table_is_published_as_written(wal_shop: WalShop, driver: str) -> None:
    name = 'a%s "b" {x} :y'
    await wal_shop.sql.execute('create table "a%s ""b"" {x} :y" (id integer primary key)')
    table = sa.Table(name, sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True))
    engine = create_async_engine(wal_shop.engine.url.set(drivername=f"postgresql+{driver}"))
    installed = await install_wal_capture(engine, [table])
    await uninstall_wal_capture(engine, [table])
    left = await wal_capture_status(engine)
    await engine.dispose()
    assert [it.table for it in installed.tables] == [name, "item"]
    assert [it.table for it in left.tables] == ["item"]


async def test_installing_again_changes_nothing(wal_shop: WalShop) -> None:
    before = await wal_shop.slot()
    await install_wal_capture(wal_shop.engine, ["public.item"])
    after = await wal_shop.slot()
    assert after["confirmed_flush_lsn"] == before["confirmed_flush_lsn"]


async def test_tables_of_models_are_installed(wal_shop: WalShop) -> None:
    metadata = sa.MetaData()
    table = sa.Table("modelled", metadata, sa.Column("id", sa.Integer, primary_key=True))
    async with wal_shop.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    status = await install_wal_capture(wal_shop.engine, table)
    assert [it.table for it in status.tables] == ["item", "modelled"]
    await uninstall_wal_capture(wal_shop.engine, table)
    assert [it.table for it in (await wal_capture_status(wal_shop.engine)).tables] == ["item"]


async def test_nothing_is_left_after_uninstalling(wal_shop: WalShop) -> None:
    await uninstall_wal_capture(wal_shop.engine)
    await uninstall_wal_capture(wal_shop.engine)
    status = await wal_capture_status(wal_shop.engine)
    assert (status.wal_status, status.tables) == (None, ())
    assert await wal_shop.slot() is None


async def test_a_publication_that_would_hide_a_truncation_is_mended(wal_shop: WalShop) -> None:
    await wal_shop.sql.execute(
        "create table part (id integer primary key) partition by range (id);"
        "create table part_low partition of part for values from (0) to (10);"
        "alter publication rowsignal set (publish_via_partition_root = true, publish = 'insert');"
        "alter publication rowsignal add table part"
    )
    before = await wal_capture_status(wal_shop.engine)
    after = await install_wal_capture(wal_shop.engine, ["public.part"])
    problems = {it.table: it.problem for it in before.tables}
    assert "not published" in (problems["part"] or "")
    assert [it.problem for it in after.tables] == [None, None]


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ("(id integer)", "no primary key"),
        (
            "(id integer primary key); alter table odd replica identity nothing",
            "does not say which row",
        ),
        (
            "(id integer primary key deferrable)",
            "does not say which row",
        ),
        (
            f"(id integer primary key, u integer not null unique); {BY_INDEX}",
            "does not say which row",
        ),
    ],
)
async def test_a_table_whose_rows_cannot_be_told_apart_is_refused(
    wal_shop: WalShop, made: str, words: str
) -> None:
    await wal_shop.sql.execute(f"create table odd {made}")
    with pytest.raises(NotWatchedError, match=words):
        await install_wal_capture(wal_shop.engine, ["public.odd"])
    assert [it.table for it in (await wal_capture_status(wal_shop.engine)).tables] == ["item"]


async def test_unlogged_and_missing_tables_are_refused(wal_shop: WalShop) -> None:
    await wal_shop.sql.execute("create unlogged table odd (id integer primary key)")
    with pytest.raises(NotWatchedError, match="SET LOGGED"):
        await install_wal_capture(wal_shop.engine, ["public.odd"])
    with pytest.raises(NotFoundError, match=r"public\.none"):
        await install_wal_capture(wal_shop.engine, ["public.none"])


async def test_a_role_that_may_not_replicate_is_told_so(wal_shop: WalShop) -> None:
    name = f"{wal_shop.engine.url.database}_plain"
    await wal_shop.sql.execute(f'create role "{name}" login')
    engine = create_async_engine(wal_shop.engine.url.set(username=name))
    try:
        with pytest.raises(MissingRightError, match=f'ALTER ROLE "{name}" REPLICATION'):
            await install_wal_capture(engine, ["public.item"])
    finally:
        await engine.dispose()
        await wal_shop.sql.execute(f'drop role "{name}"')


async def test_a_role_with_replication_alone_relays(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    name = f"{wal_shop.engine.url.database}_relay"
    await wal_shop.sql.execute(f'create role "{name}" login replication')
    engine = create_async_engine(wal_shop.engine.url.set(username=name))
    try:
        async with relaying(engine, nats.url, capture="wal"):
            await stream.next()
            await wal_shop.insert(1)
            assert [it.id for it in await stream.changes(1)] == [1]
    finally:
        await engine.dispose()
        await wal_shop.sql.execute(f'drop role "{name}"')


async def test_a_slot_that_is_read_is_not_dropped(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader, monkeypatch: Any
) -> None:
    monkeypatch.setattr("rowsignal.relay.wal.installation.RELEASE_TIMEOUT", 0.2)
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        with pytest.raises(NotWatchedError, match="end it first"):
            await uninstall_wal_capture(wal_shop.engine)
        monkeypatch.undo()
    status = await wal_capture_status(wal_shop.engine)
    assert status.wal_status == "reserved"


@pytest.fixture(scope="module")
def plain_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(settings={"wal_level": "replica"}) as server:
        yield server


@pytest.fixture
async def plain(plain_server: EmbeddedPostgres) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(plain_server.url)
    yield engine
    await engine.dispose()


async def test_a_server_without_logical_wal_is_told_so(plain: AsyncEngine) -> None:
    with pytest.raises(NotWatchedError, match="wal_level is replica"):
        await install_wal_capture(plain, ["public.item"])


async def test_a_server_without_a_free_slot_is_told_so() -> None:
    with EmbeddedPostgres(settings={"max_replication_slots": "1"}) as server:
        engine = create_async_engine(server.url)
        sql = await asyncpg.connect(server.dsn)
        await sql.execute("create table item (id integer primary key)")
        await sql.execute("select pg_create_physical_replication_slot('other')")
        with pytest.raises(NotWatchedError, match="max_replication_slots"):
            await install_wal_capture(engine, ["public.item"])
        await sql.close()
        await engine.dispose()


async def _found(engine: AsyncEngine) -> list[tuple[Severity, str]]:
    findings = await diagnose(engine)
    return [(it.severity, it.message) for it in findings if it.subject.startswith("slot ")]


async def test_doctor_tells_of_a_slot_that_is_not_read(
    wal_shop: WalShop, nats: NatsServer, stream: StreamReader
) -> None:
    ((severity, message),) = await _found(wal_shop.engine)
    assert severity is Severity.WARNING
    assert "No relay reads it" in message
    async with relaying(wal_shop.engine, nats.url, capture="wal"):
        await stream.next()
        assert [severity for severity, _ in await _found(wal_shop.engine)] == [Severity.OK]


async def test_the_commands_install_show_and_uninstall(
    wal_shop: WalShop, capsys: pytest.CaptureFixture[str]
) -> None:
    async def run(*arguments: str) -> Ended:
        return await asyncio.to_thread(line.run, *arguments)

    line = CommandLine("", capsys)
    url = wal_shop.engine.url.render_as_string(hide_password=False)
    await wal_shop.sql.execute("create table more (id integer primary key)")
    installed = await run("relay", "install", "public.more", "--url", url, "--json")
    shown = await run("relay", "status", "--url", url)
    await wal_shop.sql.execute("alter table more replica identity nothing")
    broken = await run("relay", "status", "--url", url)
    removed = await run("relay", "uninstall", "public.more", "--url", url)
    refused = await run("relay", "install", "public.more", "--url", url)
    gone = await run("relay", "uninstall", "--url", url)
    missing = await run("relay", "status", "--url", url)
    without = await run("relay", "--url", url)
    assert [it["table"] for it in json.loads(installed.out)["tables"]] == ["item", "more"]
    assert "public.more\tkeys" in shown.out
    assert [it.code for it in (installed, shown, removed, gone)] == [0, 0, 0, 0]
    assert [it.code for it in (broken, refused, missing)] == [1, 1, 1]
    assert "REPLICA IDENTITY FULL" in refused.err
    assert (without.code, "--nats nats://host:4222" in without.err) == (2, True)
