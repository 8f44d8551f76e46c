"""Commands that look after consumers, and the worker."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from rowsignal.changes import Change
from rowsignal.handlers import Retry
from support.command_line import CommandLine
from support.doc_pages import ROOT
from support.handlers import (
    effects,
    make_tables,
    record,
    recording,
    until_handled,
    until_lag,
    write,
)
from support.waits import close_listener

NEVER = Retry(attempts=2, delay=3600.0, max_delay=3600.0)

PROGRAM = """
import os

from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal import ChangeHandlers
from support.handlers import Task, record

engine = create_async_engine(os.environ["DATABASE_URL"])
changes = ChangeHandlers(engine, lease=1.0)
changes.on(Task, name="recorder", start="beginning")(record)
"""


@pytest.fixture(autouse=True)
async def tables(engine: AsyncEngine) -> AsyncIterator[None]:
    await make_tables(engine)
    yield
    await close_listener(engine)


@pytest.fixture
def command_line(database_url: str, capsys: pytest.CaptureFixture[str]) -> CommandLine:
    return CommandLine(database_url, capsys)


async def run(command_line: CommandLine, *arguments: str) -> tuple[int, str, str]:
    """Run a command in a thread: commands have event loops of their own."""
    command = ["consumers", *arguments[:1], "--url", command_line.url, *arguments[1:]]
    ended = await asyncio.to_thread(command_line.run, *command)
    return ended.code, ended.out, ended.err


async def fail_at_one(session: AsyncSession, change: Change) -> None:
    if change.key == {"id": 1}:
        raise RuntimeError("one")
    await record(session, change)


async def test_consumers_are_listed_with_what_is_wrong(
    engine: AsyncEngine, command_line: CommandLine
) -> None:
    await write(engine, 1, 2)
    async with recording(engine, handler=fail_at_one, retry=NEVER):
        await until_lag(engine, lambda lag: lag.attempts == 1)
        code, out, _ = await run(command_line, "list")
        assert code == 0
        name, worker, behind, *_ = out.split("\t")
        assert (name, behind) == ("recorder", "2")
        assert worker.endswith(f":{os.getpid()}")
        assert "1x RuntimeError: one" in out
        ended = await asyncio.to_thread(command_line.on_database, "consumers", "--json")
        assert json.loads(ended.out)[0]["tables"] == ['"public"."tasks"']


async def test_a_failing_change_is_skipped_retried_and_dropped(
    engine: AsyncEngine, command_line: CommandLine
) -> None:
    await write(engine, 1, 2)
    async with recording(engine, handler=fail_at_one, retry=NEVER, lease=0.6):
        await until_lag(engine, lambda lag: lag.attempts == 1)
        assert (await run(command_line, "skip", "recorder"))[1].startswith("1 changes skipped")
        await until_handled(engine, 1)
        _, out, _ = await run(command_line, "letters", "--json")
        (letter,) = json.loads(out)
        assert (letter["change"]["key"], letter["error"]) == ({"id": 1}, "RuntimeError: one")
        _, out, _ = await run(command_line, "retry-letters", "recorder", str(letter["id"]))
        assert out.startswith("1 dead letters will be handled")
    _, out, _ = await run(command_line, "letters", "recorder")
    assert "insert public.tasks\t{'id': 1}" in out
    assert (await run(command_line, "drop-letters", "recorder"))[1] == "1 dead letters deleted.\n"


async def test_a_consumer_is_reset_and_dropped(
    engine: AsyncEngine, command_line: CommandLine
) -> None:
    await write(engine, 1)
    async with recording(engine):
        await until_handled(engine, 1)
    code, out, _ = await run(command_line, "reset", "recorder", "--to", "start")
    assert (code, out) == (0, "recorder goes on from start.\n")
    async with recording(engine):
        await until_handled(engine, 2)
    assert (await run(command_line, "drop", "recorder"))[0] == 0
    code, _, err = await run(command_line, "reset", "recorder")
    assert (code, "no consumer 'recorder'" in err) == (1, True)
    code, _, err = await run(command_line, "reset", "recorder", "--to", "yesterday")
    assert (code, "is not a position" in err) == (1, True)


async def test_work_handles_changes_until_it_is_told_to_stop(
    engine: AsyncEngine, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    url = engine.url.render_as_string(hide_password=False)
    path = os.pathsep.join([str(ROOT / "tests"), str(tmp_path)])
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "rowsignal", "work", "program:changes"),
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": url, "PYTHONPATH": path},
        stderr=asyncio.subprocess.PIPE,
    )
    await write(engine, 1)
    await until_handled(engine, 1)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "At work as recorder." in said.decode()
    lag = await until_lag(engine, lambda lag: lag.holder is None)
    assert (lag.lag_changes, await effects(engine)) == (0, [(1, 0)])


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("nowhere", "write module:name"),
        ("nowhere:changes", "there is no module 'nowhere'"),
        ("json:dumps", "name a ChangeHandlers object"),
    ],
)
def test_what_is_not_there_is_said(command_line: CommandLine, place: str, said: str) -> None:
    ended = command_line.run("work", place)
    assert ended.code == 2
    assert said in ended.err
    assert "--models" not in ended.err
