"""Writes from the feed's task, as though from the task that serves the client."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Send

from rowsignal.sse.delivery.buffers import PIECE, Reader
from rowsignal.sse.delivery.response import EventStream

layer: ContextVar[str] = ContextVar("layer", default="none")


class Client:
    """A client whose server takes writes at once while `takes` is set."""

    def __init__(self) -> None:
        self.received = b""
        self.takes = asyncio.Event()
        self.takes.set()
        self.left = asyncio.Event()
        self.tasks: list[asyncio.Task[object] | None] = []

    async def receive(self) -> Message:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        body = message.get("body", b"")
        if body:
            self.tasks.append(asyncio.current_task())
            while not self.takes.is_set():
                await self.takes.wait()
        self.received += body

    async def until(self, whole: bytes) -> None:
        while self.received != whole:
            assert whole.startswith(self.received), (self.received, whole)
            await asyncio.sleep(0)


async def nothing() -> AsyncGenerator[bytes, None]:
    return
    yield b""


@asynccontextmanager
async def streaming(client: Client, send: Send | None = None) -> AsyncIterator[Reader]:
    """Serve an idle stream to a client; it ends with the block, as it began."""
    reader = Reader(limit=1_000_000)
    stream = EventStream(nothing(), reader, lambda: None)
    scope = {"type": "http", "method": "GET"}
    serving = asyncio.create_task(stream(scope, client.receive, send or client.send))
    try:
        while reader.write is None:
            await asyncio.sleep(0)
        yield reader
    finally:
        client.left.set()
        await asyncio.wait([serving])
    await serving


async def test_what_the_server_takes_is_written_before_push_returns() -> None:
    client = Client()
    async with streaming(client) as reader:
        me = asyncio.current_task()
        reader.push(b"one ")
        assert client.received == b"one "
        reader.push(b"two")
        assert client.received == b"one two"
        assert asyncio.current_task() is me
        assert len(set(client.tasks)) == 1, "as the task that serves, each time"
        assert me not in client.tasks


async def test_a_write_outside_of_any_task_leaves_none_behind() -> None:
    client, seen = Client(), list[object]()
    async with streaming(client) as reader:
        loop = asyncio.get_running_loop()
        loop.call_soon(lambda: (reader.push(b"timer"), seen.append(asyncio.current_task())))
        await client.until(b"timer")
    assert seen == [None]


async def test_a_paused_write_goes_on_in_the_serving_task_and_later_bytes_follow() -> None:
    client = Client()
    async with streaming(client) as reader:
        client.takes.clear()
        reader.push(b"one ")
        reader.push(b"two ")
        assert reader.writing_since is not None
        for _ in range(5):
            await asyncio.sleep(0)
        reader.push(b"three ")
        assert client.received == b""
        client.takes.set()
        await client.until(b"one two three ")
        assert reader.writing_since is None
        reader.push(b"four")
        assert client.received == b"one two three four"


async def test_the_last_frame_follows_a_paused_write() -> None:
    client = Client()
    async with streaming(client) as reader:
        client.takes.clear()
        reader.push(b"one ")
        reader.close(b"bye")
        client.takes.set()
        await client.until(b"one bye")


async def test_a_client_that_leaves_amid_a_pause_cancels_the_write() -> None:
    client, ends = Client(), list[str]()

    async def send(message: Message) -> None:
        try:
            await client.send(message)
        except asyncio.CancelledError:
            ends.append("cancelled")
            raise

    async with streaming(client, send) as reader:
        client.takes.clear()
        reader.push(b"one")
        for _ in range(3):
            await asyncio.sleep(0)
    assert ends == ["cancelled"]
    assert client.received == b""


async def test_a_time_limit_around_send_ends_that_stream_and_not_the_feed() -> None:
    client, ended = Client(), asyncio.Event()

    async def send(message: Message) -> None:
        try:
            async with asyncio.timeout(0.01):
                await client.send(message)
        except TimeoutError:
            ended.set()
            raise

    async def push() -> None:
        me = asyncio.current_task()
        assert me is not None
        async with streaming(client, send) as reader:
            client.takes.clear()
            reader.push(b"one")
            await ended.wait()
            reader.push(b"two")
            attempts.append(me.cancelling())

    attempts: list[int] = []
    with pytest.raises(TimeoutError):
        await push()
    assert attempts == [0]


async def test_an_error_of_send_is_raised_in_the_stream_that_it_concerns() -> None:
    client = Client()

    async def send(message: Message) -> None:
        if message.get("body") == b"two":
            raise ConnectionResetError("gone")
        await client.send(message)

    async def push() -> None:
        async with streaming(client, send) as reader:
            for chunk in (b"one", b"two", b"three"):
                reader.push(chunk)
            await asyncio.sleep(0)

    with pytest.raises(ConnectionResetError, match="gone"):
        await push()
    assert client.received == b"one"


@pytest.mark.parametrize("takes", [True, False])
async def test_context_variables_are_those_of_the_request(takes: bool) -> None:
    client, seen = Client(), list[str]()

    async def send(message: Message) -> None:
        seen.append(layer.get())
        token = layer.set("inside")
        await client.send(message)
        layer.reset(token)  # raises in any other context than that of `set`

    token = layer.set("request")
    async with streaming(client, send) as reader:
        layer.reset(token)
        seen.clear()
        if not takes:
            client.takes.clear()
        reader.push(b"one")
        await asyncio.sleep(0)
        client.takes.set()
        await client.until(b"one")
        assert layer.get() == "none"
    assert seen[0] == "request"


async def test_a_layer_that_gives_way_before_it_sends_gets_every_byte_in_order() -> None:
    client = Client()

    async def send(message: Message) -> None:
        await asyncio.sleep(0)
        await client.send(message)

    async with streaming(client, send) as reader:
        for number in range(20):
            reader.push(b"%d " % number)
        await client.until(b"".join(b"%d " % number for number in range(20)))


async def test_a_chunk_that_servers_would_copy_for_each_reader_goes_in_pieces() -> None:
    client = Client()
    async with streaming(client) as reader:
        chunk = b"x" * (2 * PIECE + 1)
        reader.push(chunk)
        await client.until(chunk)
    assert len(client.tasks) == 3


Step = Callable[[Client, Reader], Awaitable[None] | None]


async def give_way(_: Client, __: Reader) -> None:
    await asyncio.sleep(0)


steps: st.SearchStrategy[Step] = st.sampled_from(
    [
        give_way,
        lambda client, _: client.takes.set(),
        lambda client, _: client.takes.clear(),
    ]
)


@given(st.lists(st.one_of(steps, st.integers(1, 3), st.just(PIECE + 1)), max_size=40))
async def test_bytes_arrive_once_and_in_order_however_writes_pause(
    order: list[Step | int],
) -> None:
    client, sent = Client(), b""
    async with streaming(client) as reader:
        for place, step in enumerate(order):
            if isinstance(step, int):
                chunk = bytes([97 + place % 26]) * step
                sent += chunk
                reader.push(chunk)
            elif (waiting := step(client, reader)) is not None:
                await waiting
        client.takes.set()
        await client.until(sent)
        assert (reader.size, reader.writing_since) == (0, None)
