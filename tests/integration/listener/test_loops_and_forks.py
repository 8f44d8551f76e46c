"""Several event loops in threads, and processes that fork while they listen."""

import asyncio
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from rowsignal.dispatcher import Dispatcher
from rowsignal.triggers import install_triggers
from support.hint_listener import connected, plain_url
from support.shop import Base, Order
from support.waits import NOTIFIED_ONLY, begin_wait, close_listener, until_mode

TESTS = Path(__file__).resolve().parents[2]
PATIENCE = 30.0


@pytest.fixture
async def shop(engine: AsyncEngine) -> AsyncEngine:
    """Provide an engine that any event loop may use, on a shop with one order."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order).values(id=1))
    await install_triggers(engine, [Order])
    return create_async_engine(engine.url, poolclass=NullPool)


async def test_event_loops_of_two_threads_share_an_engine(shop: AsyncEngine) -> None:
    both_armed = threading.Barrier(3)

    async def wait() -> tuple[int, int]:
        Dispatcher.of(shop, NOTIFIED_ONLY)
        waiting = begin_wait(shop, Order, 1)
        await until_mode(shop, "armed")
        await asyncio.to_thread(both_armed.wait, PATIENCE)
        total = (await waiting).total
        listener = Dispatcher.of(shop).listener
        await listener.close()
        return int(total), id(listener)

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as threads:
        runs = [loop.run_in_executor(threads, asyncio.run, wait()) for _ in range(2)]
        await asyncio.to_thread(both_armed.wait, PATIENCE)
        async with connected(shop) as writer:
            await writer.execute("update orders set total = 5")
        (first, one), (second, other) = await asyncio.gather(*runs)
    assert (first, second) == (5, 5)
    assert one != other


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # in one piece: two processes speak


def wait_and_report(url: str) -> None:
    """Wait in this process and in a forked child; print what each was woken by."""
    engine = create_async_engine(url, poolclass=NullPool)
    child_is_armed = os.pipe()

    async def wait_in_child() -> None:
        Dispatcher.of(engine, NOTIFIED_ONLY)
        waiting = begin_wait(engine, Order, 1)
        await until_mode(engine, "armed")
        os.write(child_is_armed[1], b"x")
        say(f"child {(await waiting).total}")
        await close_listener(engine)

    async def wait_in_parent() -> None:
        Dispatcher.of(engine, NOTIFIED_ONLY)
        waiting = begin_wait(engine, Order, 1)
        await until_mode(engine, "armed")
        child = os.fork()
        if child == 0:
            try:
                asyncio.run(wait_in_child())
            finally:
                os._exit(0)
        await asyncio.to_thread(os.read, child_is_armed[0], 1)
        say("both armed")
        say(f"parent {(await waiting).total}")
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
        say(f"child ended with {status}")
        again = begin_wait(engine, Order, 1)
        await until_mode(engine, "armed")
        say("again armed")
        say(f"again {(await again).total}")
        await close_listener(engine)

    asyncio.run(wait_in_parent())


async def test_a_child_that_was_forked_while_its_parent_listened_has_its_own_listener(
    shop: AsyncEngine,
) -> None:
    url = shop.url.render_as_string(hide_password=False)
    program = f"import test_loops_and_forks as t; t.wait_and_report({url!r})"
    path = f"{TESTS}{os.pathsep}{Path(__file__).parent}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", program),
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert process.stdout is not None
    writer = await asyncpg.connect(plain_url(shop))
    try:
        async with asyncio.timeout(PATIENCE):
            assert await process.stdout.readline() == b"both armed\n"
            await writer.execute("update orders set total = 5")
            lines = {await process.stdout.readline() for _ in range(3)}
            assert lines == {b"parent 5\n", b"child 5\n", b"child ended with 0\n"}
            assert await process.stdout.readline() == b"again armed\n"
            await writer.execute("update orders set total = 6")
            assert await process.stdout.readline() == b"again 6\n"
            await process.communicate()  # to the end of the pipe, which closes it
            assert process.returncode == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await writer.close()
