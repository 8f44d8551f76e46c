import asyncio
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.change_log import ChangeLog
from rowsignal.changes import Change, Operation, Reset
from rowsignal.cli.change_output import LiveTable
from rowsignal.embedded import EmbeddedPostgres
from support.command_line import CommandLine, Ended, connect
from support.pgbouncer import pgbouncer, settings_in_pool

TABLES = """
create table orders (id int primary key, status text, total numeric);
insert into orders values (1, 'new', 9.50), (2, 'new', 20.25);
"""


@pytest.fixture
def command_line(database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(database_url, capsys)
    asyncio.run(line.execute(TABLES))
    return line


async def position(url: str) -> str:
    engine = create_async_engine(url)
    async with ChangeLog(engine) as log:
        found = await log.position()
    await engine.dispose()
    return found


async def while_somebody_writes(line: CommandLine, *arguments: str) -> Ended:
    """Run a command in a thread and update a row, again and again, until it ends."""
    loop, writer = asyncio.get_running_loop(), await connect(line.url)
    with ThreadPoolExecutor(1) as threads:
        ended = loop.run_in_executor(threads, line.on_database, *arguments)
        while not ended.done():
            await writer.execute("update orders set total = total + 1 where id = 2")
            await asyncio.wait([ended], timeout=0.05)
    await writer.close()
    return await ended


def test_a_logged_table_is_resumed_exactly(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "--log")
    start = asyncio.run(position(command_line.url))
    asyncio.run(
        command_line.execute(
            "update orders set status = 'paid' where id = 1; delete from orders where id = 2;"
        )
    )

    lines = command_line.on_database("watch", "orders", "--after", start, "--count", "2")
    document = command_line.on_database("watch", "--after", start, "--count", "1", "--json")

    shown = [line.split("\t")[1:] for line in lines.out.splitlines()]
    assert shown == [
        ["update", "public.orders", "id=1", "status"],
        ["delete", "public.orders", "id=2", ""],
    ]
    change = json.loads(document.out)
    assert (change["operation"], change["key"], change["changed"]) == (
        "update",
        {"id": 1},
        ["status"],
    )


def test_a_snapshot_shows_rows_with_values_of_any_type(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders")

    ended = command_line.on_database("watch", "orders", "--snapshot", "--count", "2", "--json")

    rows = [json.loads(line)["row"] for line in ended.out.splitlines()]
    assert {row["id"]: row["total"] for row in rows} == {1: "9.50", 2: "20.25"}


async def test_changes_show_as_they_come_and_without_a_gap_at_the_start(
    command_line: CommandLine,
) -> None:
    await asyncio.to_thread(command_line.on_database, "install", "orders")

    ended = await while_somebody_writes(
        command_line, "watch", "orders", "--operation", "update", "--count", "2"
    )

    assert ended.code == 0
    lines = [line.split("\t")[1:] for line in ended.out.splitlines()]
    assert lines == [["update", "public.orders", "id=2", "total"]] * 2


def test_the_live_table_counts_what_it_shows() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=24)
    update = Change(
        operation=Operation.UPDATE,
        schema="sales",
        table="orders",
        key={"id": 7},
        changed=("status",),
    )

    with LiveTable(console) as table:
        table.add(update)
        table.add(Reset(reason="The log was pruned."))

    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    for expected in ("sales.orders", "id=7", "status", "The log was pruned.", "1 reset, 1 update"):
        assert expected in written


def test_bench_measures_both_ways_and_leaves_no_trace(command_line: CommandLine) -> None:
    ended = command_line.on_database(
        "bench", "--rounds", "10", "--polled-rounds", "2", "--interval", "0.1", "--json"
    )

    report = json.loads(ended.out)
    assert report["mode"] == "armed"
    assert (report["rounds"], report["polled_rounds"]) == (10, 2)
    assert 0 < report["notified"]["p50"] <= report["notified"]["slowest"]
    schemas = asyncio.run(
        command_line.execute("select nspname from pg_namespace where nspname like 'rowsignal%'")
    )
    assert schemas == []


async def test_commands_work_through_a_transaction_pooler(
    server: EmbeddedPostgres, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pooler takes another server connection for each transaction, out of many."""
    await CommandLine(database_url, capsys).execute(TABLES)
    name = make_url(database_url).database
    async with pgbouncer(server) as port:
        await settings_in_pool(port, str(name), "jit")  # opens them all
        line = CommandLine(f"postgresql://postgres@127.0.0.1:{port}/{name}", capsys)
        installed = await asyncio.to_thread(line.on_database, "install", "orders", "--log")
        seen = await while_somebody_writes(line, "watch", "orders", "--count", "3", "--json")
        status = await asyncio.to_thread(line.on_database, "status", "--json")
    assert installed.code == 0
    assert [json.loads(it)["key"] for it in seen.out.splitlines()] == [{"id": 2}] * 3
    assert status.code == 0
