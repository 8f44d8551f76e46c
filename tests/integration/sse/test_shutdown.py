"""Streams end when a server is told to stop, whichever handler of the signal it has."""

import asyncio
import os
import signal

import pytest

from rowsignal.sse.http.shutdown import on_stop_signal


class Server:
    """Handles SIGTERM as uvicorn does."""

    def __init__(self) -> None:
        self.should_exit = False
        self.heard: list[int] = []

    def handle_exit(self, number: int, _frame: object) -> None:
        self.heard.append(number)


@pytest.fixture
def server():
    server, before = Server(), {}
    for number in (signal.SIGTERM, signal.SIGQUIT):
        before[number] = signal.signal(number, server.handle_exit)
    yield server
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
async def test_a_signal_closes_the_streams_and_reaches_the_server(server, number):
    closed = asyncio.Event()
    with on_stop_signal(closed.set):
        os.kill(os.getpid(), number)
        async with asyncio.timeout(10):
            await closed.wait()
        assert server.heard == [number]
        assert server.should_exit
    assert signal.getsignal(number) == server.handle_exit


async def test_handlers_of_an_event_loop_still_run(server):
    loop, closed, heard = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, heard.set)
    try:
        with on_stop_signal(closed.set):
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(10):
                await closed.wait()
                await heard.wait()
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_outside_the_main_thread_nothing_is_touched(server):
    def elsewhere() -> None:
        async def run() -> None:
            with on_stop_signal(lambda: None):
                assert signal.getsignal(signal.SIGTERM) == server.handle_exit

        asyncio.run(run())

    await asyncio.to_thread(elsewhere)
