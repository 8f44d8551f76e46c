import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rowsignal.cli import main
from support.command_line import CommandLine, connect

TABLES = """
create schema "Sales";
create table orders (id int primary key, status text);
create table "Sales"."Line items" (id int primary key, note text);
create view orders_view as select * from orders;
"""


@pytest.fixture
def command_line(database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    line = CommandLine(database_url, capsys)
    asyncio.run(line.execute(TABLES))
    return line


def test_install_says_what_it_did_to_each_table(command_line: CommandLine) -> None:
    first = command_line.on_database("install", "orders", "--table", "Sales.Line items", "--json")
    again = command_line.on_database("install", "orders", "--json")

    assert first.code == again.code == 0
    assert json.loads(first.out)["tables"] == [
        {"schema": None, "table": "orders", "action": "installed", "warning": None},
        {"schema": "Sales", "table": "Line items", "action": "installed", "warning": None},
    ]
    assert json.loads(again.out)["tables"][0]["action"] == "unchanged"


def test_status_tells_hints_from_logs_and_fails_where_something_is_missing(
    command_line: CommandLine,
) -> None:
    command_line.on_database("install", "orders", "--log")

    good = command_line.on_database("status")
    bad = command_line.on_database("status", "orders", "Sales.Line items")

    assert (good.code, bad.code) == (0, 1)
    assert good.out.split("\t")[:3] == ["public.orders", "log", "installed"]
    assert "Sales.Line items\tnone\tmissing" in bad.out


def test_status_of_models_names_orphans(command_line: CommandLine) -> None:
    asyncio.run(command_line.execute("create table lines (order_id int, no int, quantity int);"))
    command_line.on_database("install", "Sales.Line items")

    ended = command_line.on_database("status", "--models", "support.shop:Base", "--json")

    states = {one["table"]: one["state"] for one in json.loads(ended.out)["tables"]}
    assert states["Line items"] == "orphaned"
    assert states["orders"] == "missing"
    assert ended.code == 1


def test_settings_of_the_command_reach_the_triggers(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "--column", "status", "--always")

    rows = asyncio.run(
        command_line.execute("select pg_get_triggerdef(oid) from pg_trigger where not tgisinternal")
    )
    assert any('"columns": ["status"]' in row[0] and '"always": true' in row[0] for row in rows)


def test_a_dry_run_prints_sql_that_installs_and_connects_to_nothing(
    command_line: CommandLine,
) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    printed = command_line.run("install", "--url", nowhere, "orders", "--log", "--dry-run")

    asyncio.run(command_line.execute(printed.out))

    assert command_line.on_database("status", "orders").code == 0


def test_uninstall_takes_named_tables_or_all_but_never_guesses(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "Sales.Line items")

    unclear = command_line.on_database("uninstall")
    one = command_line.on_database("uninstall", "orders", "--json")
    rest = command_line.on_database("uninstall", "--all", "--json")

    assert unclear.code == 2
    assert "--all" in unclear.err
    assert json.loads(one.out)["tables"][0]["action"] == "removed"
    assert [done["table"] for done in json.loads(rest.out)["tables"]] == ["Line items"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["install"], 2, "No tables were named"),
        (["install", "orders_view"], 1, "orders_view"),
        (["install", "nowhere.nothing"], 1, "nowhere.nothing"),
        (["install", "--models", "no_such_module:Base"], 2, "no module 'no_such_module'"),
        (["install", "--models", "support.shop:Nothing"], 2, "has no 'Nothing'"),
        (["install", "--models", "support.shop"], 2, "module:name"),
        (["install", "orders", "--row-values"], 2, "log=True"),
        (["watch", "nothing"], 1, "no table nothing"),
        (["watch", "orders"], 1, "no triggers"),
        (["watch"], 1, "No table carries triggers"),
        (["watch", "orders", "--after", "nonsense"], 1, "position"),
        (["prune", "--max-age", "soon"], 2, "'soon' is no amount"),
    ],
)
def test_a_failure_is_one_sentence(
    command_line: CommandLine, arguments: list[str], code: int, sentence: str
) -> None:
    command, *rest = arguments

    ended = command_line.on_database(command, *rest)

    assert ended.code == code
    assert sentence.lower() in ended.err.lower()
    assert ended.err.startswith("rowsignal: ")
    assert ended.err.count("\n") == 1
    assert ended.out == ""


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("postgresql://me:geheim@127.0.0.1:1/shop", "Cannot connect to shop at 127.0.0.1:1"),
        ("postgresql://me:geheim@/shop?host=/nowhere", "Cannot connect to shop at /nowhere"),
        ("mysql://me:geheim@localhost/shop", "PostgreSQL, not mysql"),
        ("me:geheim@localhost", "it is no URL"),
        ("", "No database was named"),
    ],
)
def test_a_database_out_of_reach_is_named_without_its_password(
    capsys: pytest.CaptureFixture[str], url: str, sentence: str
) -> None:
    ended = CommandLine(url, capsys).on_database("status")

    assert ended.code == 2
    assert sentence in ended.err
    assert "geheim" not in ended.err + ended.out


def test_the_url_may_come_from_the_environment(
    command_line: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@127.0.0.1:1/nothing")
    monkeypatch.setenv("ROWSIGNAL_DATABASE_URL", command_line.url)

    assert command_line.run("status").code == 0


def test_an_error_shows_its_place_on_demand(command_line: CommandLine) -> None:
    with pytest.raises(Exception, match="nowhere"):
        main(["--traceback", "install", "--url", command_line.url, "nowhere.nothing"])


async def test_a_busy_table_is_left_alone_after_the_lock_timeout(
    command_line: CommandLine,
) -> None:
    writer = await connect(command_line.url)
    async with writer.transaction():
        await writer.execute("insert into orders values (1, 'new')")
        ended = await asyncio.to_thread(
            command_line.on_database, "install", "orders", "--lock-timeout", "0.1"
        )
    await writer.close()

    assert ended.code == 1
    assert "was not free within 0.1 s" in ended.err


def test_prune_says_what_is_left(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "--log")
    command_line.on_database("prune")
    asyncio.run(command_line.execute("insert into orders values (1, 'new');"))

    ended = command_line.on_database("prune", "--max-age", "90m", "--max-size", "1M", "--json")

    report = json.loads(ended.out)
    assert (report["deleted"], report["is_skipped"]) == (0, False)


def test_prune_stores_its_limits_when_it_is_told_to(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "--log")
    asyncio.run(command_line.execute("insert into orders values (1, 'new');"))
    command_line.on_database("prune", "--max-age", "0s", "--save")

    asyncio.run(command_line.execute("insert into orders values (2, 'new');"))
    ended = command_line.on_database("prune", "--json")

    assert json.loads(ended.out)["deleted"] == 1


def test_db_init_writes_once_and_overwrites_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, folder = CommandLine("", capsys), str(tmp_path / "migrations")

    first = line.run("db", "init", folder, "--metadata", "shop:Base.metadata", "--json")
    again = line.run("db", "init", folder)

    assert all(Path(file).exists() for file in json.loads(first.out)["files"])
    assert "from shop import Base" in (tmp_path / "migrations" / "env.py").read_text()
    assert again.code == 1
    assert "would be overwritten" in again.err


def test_config_shows_what_is_set_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWSIGNAL_TOKEN_SECRET", "s3cret" * 8)
    monkeypatch.setenv("ROWSIGNAL_LISTEN_URL", "postgresql://me:geheim@primary/shop")
    monkeypatch.setenv("ROWSIGNAL_PORT", "9000")
    line = CommandLine("postgresql://me:geheim@db.example/shop", capsys)

    table, document = line.on_database("config"), line.on_database("config", "--json")

    shown = json.loads(document.out)
    assert (shown["port"], shown["database_url"]) == (9000, "shop at db.example")
    assert shown["listen_url"] == "shop at primary"
    assert "ROWSIGNAL_PORT\t9000" in table.out
    assert "geheim" not in table.out + document.out
    assert "s3cret" not in table.out + document.out


def test_config_hides_addresses_of_nats(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWSIGNAL_LISTEN_URL", "nats://me:geheim@n1:4222,nats://me:geheim@n2:4222")
    monkeypatch.setenv("ROWSIGNAL_SHARED_LIMITS", "nats://me:geheim@n1:4222")
    line = CommandLine("postgresql://me@db.example/shop", capsys)
    shown = line.on_database("config", "--json").out
    assert json.loads(shown)["listen_url"] == json.loads(shown)["shared_limits"]
    assert "geheim" not in shown
    monkeypatch.setenv("ROWSIGNAL_SHARED_LIMITS", "redis://n1")
    refused = line.on_database("config")
    assert "nats://host:4222" in refused.err


def test_serve_refuses_settings_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ROWSIGNAL_TOKEN_SECRET", raising=False)
    line = CommandLine("postgresql://me@db.example/shop", capsys)

    open_to_all = line.on_database("serve", "--host", "0.0.0.0")
    monkeypatch.setenv("ROWSIGNAL_TOKEN_SECRET", "too short")
    weak = line.on_database("serve")

    assert (open_to_all.code, weak.code) == (1, 1)
    assert "ROWSIGNAL_TOKEN_SECRET" in open_to_all.err
    assert "at least 32 bytes" in weak.err
    assert "too short" not in weak.err


def test_the_module_is_the_command() -> None:
    command = [sys.executable, "-m", "rowsignal"]

    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    misspelt = subprocess.run([*command, "statsu"], capture_output=True, text=True, check=False)

    assert helped.returncode == 0
    assert "doctor" in helped.stdout
    assert "\x1b" not in helped.stdout
    assert misspelt.returncode == 2


def settings_of(command_line: CommandLine, table: str) -> dict[str, Any]:
    definition = (
        "select pg_get_triggerdef(oid) from pg_trigger"
        f" where not tgisinternal and tgrelid = '{table}'::regclass limit 1"
    )
    (row,) = asyncio.run(command_line.execute(definition))
    found = json.loads(re.search(r"'({.*?})'", row[0])[1])
    found.pop("shape", None)
    return found


def test_install_keeps_the_kind_and_the_settings_of_a_table(command_line: CommandLine) -> None:
    command_line.on_database("install", "orders", "--log", "--filter-column", "status")

    again = command_line.on_database("install", "orders", "Sales.Line items", "--json")
    kept = settings_of(command_line, "orders")
    command_line.on_database("install", "orders", "--column", "status")
    narrowed = settings_of(command_line, "orders")
    command_line.on_database("install", "orders", "--exclude", "status")
    excluded = settings_of(command_line, "orders")
    command_line.on_database("install", "orders", "--hints")

    actions = [done["action"] for done in json.loads(again.out)["tables"]]
    assert actions == ["unchanged", "installed"]
    assert kept == {"log": True, "filter": ["status"]}
    assert narrowed == {"log": True, "filter": ["status"], "columns": ["status"]}
    assert excluded == {"log": True, "filter": ["status"], "exclude": ["status"]}
    assert settings_of(command_line, "orders") == {}


def test_install_of_models_keeps_a_log_that_no_model_declares(command_line: CommandLine) -> None:
    asyncio.run(
        command_line.execute(
            "create table customers (id int primary key, name text);"
            "create table lines (order_id int, no int, quantity int, primary key (order_id, no));"
        )
    )
    command_line.on_database("install", "orders", "--log")

    ended = command_line.on_database("install", "--models", "support.shop:Base")

    assert ended.code == 0
    assert settings_of(command_line, "orders") == {"log": True}
    assert settings_of(command_line, "lines") == {}


def test_log_and_hints_contradict_each_other(command_line: CommandLine) -> None:
    ended = command_line.on_database("install", "orders", "--log", "--hints")

    assert ended.code == 2
    assert "contradict" in ended.err


@pytest.mark.parametrize("driver", ["", "+asyncpg", "+psycopg", "+psycopg2"])
@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
def test_every_url_that_the_tools_take_works(
    command_line: CommandLine, capsys: pytest.CaptureFixture[str], scheme: str, driver: str
) -> None:
    rest = command_line.url.partition("://")[2]
    line = CommandLine(f"{scheme}{driver}://{rest}&connect_timeout=5", capsys)

    assert line.on_database("status").code == 0


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    ended = CommandLine("", capsys).run("--version")

    assert ended.code == 0
    assert re.fullmatch(r"rowsignal \d+\.\d+\.\S+, Python 3\.\S+\n", ended.out)


def test_completion_is_offered(capsys: pytest.CaptureFixture[str]) -> None:
    helped = CommandLine("", capsys).run("--help")

    assert "--install-completion" in helped.out
    assert "<bool>" not in helped.out


def test_serve_says_why_it_cannot_start(
    command_line: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROWSIGNAL_TICKET_DIR", str(tmp_path / "tickets"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = command_line.on_database("serve", "--port", str(taken.getsockname()[1]))
    foreign = command_line.on_database("serve", "--host", "127.0.0.1", "--table", "nothing")
    away = command_line.run("serve", "--url", "postgresql://nobody@127.0.0.1:1/nothing")
    (tmp_path / "open").mkdir(mode=0o755)
    monkeypatch.setenv("ROWSIGNAL_TICKET_DIR", str(tmp_path / "open"))
    shared = command_line.on_database("serve", "--port", "0")

    assert "another program listens there" in busy.err
    assert "no table public.nothing" in foreign.err
    assert "Cannot connect to nothing at 127.0.0.1:1" in away.err
    assert "mode 700" in shared.err
    for ended in (busy, foreign, away, shared):
        assert ended.code in {1, 2}
        assert ended.err.count("\n") == 1


def test_serve_says_where_the_page_is_and_writes_json_where_no_terminal_is(
    command_line: CommandLine, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "rowsignal", "serve", "--port", "0"]
    environment = os.environ | {
        "DATABASE_URL": command_line.url,
        "ROWSIGNAL_TICKET_DIR": str(tmp_path / "tickets"),
    }
    environment.pop("ROWSIGNAL_DATABASE_URL", None)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    try:
        first = json.loads(process.stderr.readline())
        assert first["event"] == "starting"
        page = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", first["page"])
        assert page is not None
        socket.create_connection(("127.0.0.1", int(page[1])), timeout=30).close()
        while json.loads(process.stderr.readline())["event"] != "Application startup complete.":
            pass
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
