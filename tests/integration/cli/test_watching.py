import asyncio
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.change_log import ChangeLog
from rowsignal.changes import Change, Operation, Reset
from rowsignal.cli.change_output import JsonLines, Lines, LiveTable, Memory, Shown, picture
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


async def during_writes(line: CommandLine, *arguments: str) -> Ended:
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

    ended = await during_writes(
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
        table.add(Shown(update))
        table.add(Shown(Reset(reason="The log was pruned.")))

    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    for expected in ("sales.orders", "id=7", "status", "The log was pruned.", "1 reset, 1 update"):
        assert expected in written


@pytest.mark.usefixtures("no_schema")
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
        seen = await during_writes(line, "watch", "orders", "--count", "3", "--json")
        status = await asyncio.to_thread(line.on_database, "status", "--json")
    assert installed.code == 0
    assert [json.loads(it)["key"] for it in seen.out.splitlines()] == [{"id": 2}] * 3
    assert status.code == 0


WIDE = (
    (
        "12:30:00.123",
        "update",
        "sales.order_lines",
        "order_id=123456 no=7",
        "status=new→paid total=9.50→10.00 note=a long text that does not fit into a line at all",
    ),
    ("12:30:00.456", "delete", "sales.order_lines", "order_id=1 no=1", ""),
    ("12:30:01.000", "reset", "", "", "The log was pruned."),
)


@pytest.mark.parametrize("width", [60, 90, 200])
def test_operation_and_table_are_readable_at_any_width(width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, force_terminal=False)
    console.print(picture(list(WIDE), width))
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in out.getvalue()
    golden = Path(__file__).with_name(f"watch_{width}.txt")
    assert [line.rstrip() for line in lines] == golden.read_text().splitlines()
    firsts = [line.split() for line in lines if line.startswith(" 12:30:00")]
    assert [it[1:3] for it in firsts] == [
        ["update", "sales.order_lines"],
        ["delete", "sales.order_lines"],
    ]


def test_what_comes_from_the_database_cannot_control_the_terminal() -> None:
    odd = Change(
        operation=Operation.INSERT,
        schema="s",
        table="t\x1b[2J",
        key={"id": "\x07\u202e"},
        row={"note": "a\tb\nc\x9b31m\udc80\u200f"},
    )
    console = Console(file=io.StringIO(), force_terminal=False, width=200)
    with LiveTable(console) as table:
        table.add(Shown(odd))
    written = console.file.getvalue()
    for escape in (r"t\x1b[2J", r"\x07\u202e", r"a\tb\nc\x9b31m\udc80\u200f"):
        assert escape in written


def test_lines_and_json_are_safe_too(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"note": "a\tb\x1b[1m\x9b\u202e\udc80ä", "n": None}
    odd = Change(operation=Operation.INSERT, schema="s", table="t", key={"id": 1}, row=row)
    for output in (Lines(), JsonLines()):
        output.add(Shown(odd))
    line, document = capsys.readouterr().out.splitlines()
    assert line.split("\t")[1:] == [
        "insert",
        "s.t",
        "id=1",
        r"note=a\tb\x1b[1m\x9b\u202e\udc80ä n=null",
    ]
    assert json.loads(document)["row"] == row
    assert not [it for it in line.replace("\t", "") + document if not it.isprintable()]


def test_an_update_shows_what_was_beside_what_is() -> None:
    memory = Memory(limit=1)

    def seen(operation: Operation, key: int, **row: object) -> Mapping[str, object] | None:
        change = Change(
            operation=operation, schema="s", table="t", key={"id": key}, row=row or None
        )
        return memory.take(change).old

    assert seen(Operation.INSERT, 1, status="new") is None
    assert seen(Operation.UPDATE, 1, status="paid") == {"status": "new"}
    assert seen(Operation.DELETE, 1) == {"status": "paid"}
    assert seen(Operation.INSERT, 1, status="new") is None
    assert seen(Operation.INSERT, 2, status="new") is None
    assert seen(Operation.UPDATE, 1, status="paid") is None, "more rows than it may remember"
    memory.take(Reset(reason="a gap"))
    assert seen(Operation.UPDATE, 1, status="x") is None


async def test_rows_are_picked_by_key_column_and_condition(command_line: CommandLine) -> None:
    await asyncio.to_thread(command_line.on_database, "install", "orders", "--log")
    start = await position(command_line.url)
    await command_line.execute(
        "update orders set total = 1 where id = 1; update orders set status = 'paid' where id = 2;"
        "update orders set total = 7 where id = 2; delete from orders where id = 1;"
    )
    after = ("watch", "orders", "--after", start, "--json", "--count")

    async def watched(*arguments: str) -> list[dict[str, Any]]:
        ended = await asyncio.to_thread(command_line.on_database, *after, *arguments)
        assert ended.err == ""
        return [json.loads(line) for line in ended.out.splitlines()]

    assert [it["operation"] for it in await watched("2", "--pk", "1")] == ["update", "delete"]
    (paid,) = await watched("1", "--column", "status")
    assert (paid["key"], paid["changed"]) == ({"id": 2}, ["status"])
    found = await watched("2", "--where", "total.gt.5", "--where", "status.eq.paid")
    assert [it["key"] for it in found] == [{"id": 2}, {"id": 2}]
    assert found[1]["old"]["id"] == 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["orders", "--where", "nothing.eq.1"], "'nothing' is not a column"),
        (["orders", "--where", "status"], "is not a condition"),
        (["orders", "--column", "nothing"], "has no column 'nothing'"),
        (["orders", "--pk", "one"], "'one' is not a value of type integer"),
        (["--pk", "1"], "about one table"),
    ],
)
def test_a_condition_that_does_not_fit_is_a_sentence(
    command_line: CommandLine, arguments: list[str], sentence: str
) -> None:
    asyncio.run(command_line.execute("create table items (id int primary key);"))
    command_line.on_database("install", "orders", "items")
    ended = command_line.on_database("watch", *arguments)
    assert ended.code in {1, 2}
    assert sentence in ended.err
    assert ended.err.count("\n") == 1
