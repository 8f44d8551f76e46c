"""What importing sse-starlette does to uvicorn, and that its own responses work beside ours."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx

IMPORTS = """
import signal, sys

import rowsignal
assert not {"sse_starlette", "uvicorn"} & set(sys.modules), "needed by the sse package alone"

import uvicorn
before = dict(vars(uvicorn.Server))
import rowsignal.sse
after = dict(vars(uvicorn.Server))
changed = [name for name in after if after[name] is not before.get(name)]
assert changed == ["handle_exit"], changed

from sse_starlette.sse import AppStatus
server = uvicorn.Server(uvicorn.Config("nothing:app"))
assert not AppStatus.should_exit
server.handle_exit(signal.SIGTERM, None)
assert server.should_exit, "uvicorn's own handler is still called"
assert AppStatus.should_exit
"""

BESIDE = """
import os, sys

import anyio
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Mapped, mapped_column
from sse_starlette import EventSourceResponse

from rowsignal import Base
from rowsignal.sse import Grant, create_sse_router


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)


async def nothing_granted() -> Grant:
    return Grant(tables={})


app = FastAPI()
engine = create_async_engine(os.environ["DATABASE_URL"])
app.include_router(create_sse_router(engine, {Order: ["id"]}, authorize=nothing_granted))


@app.get("/own")
async def own() -> EventSourceResponse:
    stopping = anyio.Event()

    async def events():
        yield "hello"
        await stopping.wait()
        yield "farewell"

    return EventSourceResponse(events(), shutdown_event=stopping, shutdown_grace_period=5)


uvicorn.Server(uvicorn.Config(app, fd=int(sys.argv[1]), log_level="warning")).run()
"""


def test_importing_changes_one_method_of_uvicorn_which_still_does_its_work() -> None:
    outcome = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=False
    )
    assert outcome.returncode == 0, outcome.stderr


async def test_responses_of_ones_own_hear_of_the_shutdown(
    tmp_path: Path, database_url: str
) -> None:
    program = tmp_path / "beside.py"
    program.write_text(BESIDE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, str(program), str(listener.fileno())),
            env={**os.environ, "DATABASE_URL": database_url},
            pass_fds=[listener.fileno()],
        )
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    seen = []
    async with asyncio.timeout(60), httpx.AsyncClient(timeout=60) as client:
        async with client.stream("GET", f"{address}/own") as answer:
            async for line in answer.aiter_lines():
                seen += [line] if line.startswith("data:") else []
                if line == "data: hello":
                    server.send_signal(signal.SIGTERM)
        await server.wait()
    assert seen == ["data: hello", "data: farewell"]
