import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from rowsignal.embedded.ports import free_port
from support.command_line import connect
from support.doc_pages import ROOT

EXAMPLES = {path.name: path for path in sorted((ROOT / "examples").glob("*.py"))}
WRITTEN = {
    "install_triggers.py": [
        "accounts: installed",
        "tickets: installed",
        "accounts: installed, log",
        "tickets: installed, hint",
    ],
    "resume.py": ["parcel 1 is at the depot", "parcel 1 is at the door"],
    "worker.py": ["transfer 1: approved"],
}
SERVED = {"web_app.py"}
PATIENCE = 30.0


def test_every_example_is_tried_here() -> None:
    assert EXAMPLES.keys() == WRITTEN.keys() | SERVED


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_does_what_it_says(name: str, database_url: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES[name])],
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert sorted(ended.stdout.splitlines()) == sorted(WRITTEN[name])


@asynccontextmanager
async def served(example: Path, database_url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Run an example that serves on the port it is given, until the block ends."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(example),
        str(port),
        env={**os.environ, "DATABASE_URL": database_url},
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(PATIENCE):
            while b"Uvicorn running" not in (line := await process.stderr.readline()):
                assert line, "the example has ended"
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        process.terminate()
        await process.communicate()


async def test_the_web_application_answers_a_waiting_client_after_a_payment(
    database_url: str,
) -> None:
    async with served(EXAMPLES["web_app.py"], database_url) as client:
        order = (await client.post("/orders")).json()["id"]
        too_soon = await client.get(f"/orders/{order}/wait", params={"timeout": 0.2})
        nobody = await client.get("/orders/999/wait")
        stream = client.stream("GET", "/live/changes/public.orders", params={"snapshot": "true"})
        async with stream as answer:
            lines = answer.aiter_lines()
            await until(lines, "event: snapshot-end")
            waiting = asyncio.create_task(client.get(f"/orders/{order}/wait"))
            await pay_until(waiting, client, order, database_url)
            await until(lines, "event: update")
            event = await until(lines, "data: ")

    assert (too_soon.status_code, nobody.status_code) == (504, 404)
    assert (await waiting).json()["status"] in {"new", "paid"}
    assert '"changed":["status"]' in event


async def pay_until(
    waiting: asyncio.Task[httpx.Response], client: httpx.AsyncClient, order: int, url: str
) -> None:
    """Pay, and take that back, until a wait is over: it may not yet have seen the order."""
    clerk = await connect(url)
    while not waiting.done():
        paid = await client.post(f"/orders/{order}/pay")
        assert paid.status_code == 204
        await asyncio.wait([waiting], timeout=0.1)
        await clerk.execute("update orders set status = 'new'")
    await clerk.close()


async def until(lines: AsyncIterator[str], start: str) -> str:
    """Return the next line that begins so."""
    async for line in lines:
        if line.startswith(start):
            return line
    raise AssertionError(f"the stream ended before {start!r}")
