"""Runs of messages of which the last is acknowledged: all of them are stored, or none of the rest.

What is stored is what the stream holds, so each test reads it there.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js import api

from rowsignal.relay import JetStreamPublisher
from rowsignal.relay.jetstream import RefusedError
from rowsignal.relay.messages import ID, POSITION, Message
from rowsignal.relay.pipeline import LIMIT, RUN, Pipeline
from rowsignal.relay.publisher import FencedError, Head

DATABASE = "shop"
SUBJECT = "rowsignal.shop.public.item"


def message(number: int, payload: bytes = b"{}") -> Message:
    place = f"place {number}"
    return Message(place, SUBJECT, payload, {ID: place, POSITION: place})


class Run:
    """A pipeline, and what it has reported."""

    def __init__(self, client: Client, head: Head) -> None:
        self.stored = head.sequence
        self.last: str | None = None
        publisher = JetStreamPublisher(client, DATABASE)
        self.pipeline = Pipeline(publisher, head, timeout=5.0, report=self._report)
        self._reported = asyncio.Event()
        self.collecting = asyncio.ensure_future(self.pipeline.collect())

    def _report(self, count: int, last: Message) -> None:
        self.stored += count
        self.last = last.id
        self._reported.set()

    async def until(self, stored: int) -> None:
        """Wait until the stream is reported to hold a number of messages."""
        async with asyncio.timeout(10):
            while self.stored < stored:
                await self._reported.wait()
                self._reported.clear()
        assert self.stored == stored

    async def send(self, messages: Sequence[Message], *, is_whole: bool = True) -> None:
        """Send messages as one run, or the beginning of one."""
        for number, it in enumerate(messages, 1):
            await self.pipeline.send(it, is_last=is_whole and number == len(messages))

    async def failure(self) -> BaseException:
        """Wait for the error that ends the pipeline."""
        with pytest.raises((FencedError, RefusedError)) as raised:
            await asyncio.wait_for(self.collecting, 10)
        return raised.value


@asynccontextmanager
async def running(client: Client) -> AsyncIterator[Run]:
    """Go on after the end of the stream."""
    run = Run(client, await JetStreamPublisher(client, DATABASE).head())
    try:
        yield run
    finally:
        run.collecting.cancel()
        await asyncio.gather(run.collecting, return_exceptions=True)
        run.pipeline.close()


async def until_stored(client: Client, sequence: int) -> None:
    """Wait until the stream ends with a sequence, whether or not that was acknowledged."""
    async with asyncio.timeout(10):
        while (await JetStreamPublisher(client, DATABASE).head()).sequence < sequence:
            await asyncio.sleep(0.005)


async def ids(client: Client) -> list[str]:
    """Return the ids of the messages that are stored, in order."""
    publisher = JetStreamPublisher(client, DATABASE)
    js = client.jetstream()
    numbers = range(1, (await publisher.head()).sequence + 1)
    found = [await js.get_msg(publisher.stream, seq=number) for number in numbers]
    return [(it.headers or {})[ID] for it in found]


def places(*numbers: int) -> list[str]:
    return [f"place {number}" for number in numbers]


async def answers_of(client: Client) -> list[bytes]:
    """Return a list that takes the acknowledgements of all publishers of a server."""
    found: list[bytes] = []

    async def take(answer: Msg) -> None:
        if b'"seq"' in answer.data and b'"type"' not in answer.data:
            found.append(answer.data)

    await client.subscribe("_INBOX.>", cb=take)
    await client.flush()
    return found


@pytest.mark.parametrize("count", [1, 2, RUN + 50, LIMIT + 500])
async def test_a_run_is_stored_and_reported_as_a_whole(client: Client, count: int) -> None:
    async with running(client) as run:
        await run.send([message(number) for number in range(count)])
        await run.until(count)
        assert run.last == f"place {count - 1}"
    assert (await JetStreamPublisher(client, DATABASE).head()).sequence == count


async def test_few_messages_of_a_run_are_acknowledged(client: Client) -> None:
    async with running(client) as run:
        answers = await answers_of(client)
        await run.send([message(number) for number in range(RUN)])
        await run.until(RUN)
        await client.flush()  # whatever was answered before has arrived
        assert len(answers) == 2  # the first of all, and the last


async def test_another_publisher_takes_a_place_amid_a_run(client: Client) -> None:
    async with running(client) as run:
        await run.send([message(1)])
        await run.until(1)
        await run.send([message(2), message(3)], is_whole=False)
        await until_stored(client, 3)
        await client.jetstream().publish(SUBJECT, b"{}", headers={ID: "another"})
        await run.send([message(4), message(5), message(6)])
        assert isinstance(await run.failure(), FencedError)
        assert run.last == "place 1"  # nothing is told of what was not acknowledged
    assert await ids(client) == [*places(1, 2, 3), "another"]


async def test_another_relay_goes_on_amid_a_run(client: Client) -> None:
    async with running(client) as first:
        await first.send([message(1), message(2), message(3)], is_whole=False)
        await until_stored(client, 3)
        async with running(client) as second:
            assert second.stored == 3
            await second.send([message(4), message(5)])
            await second.until(5)
            await first.send([message(4), message(5), message(6)], is_whole=False)
            await first.send([message(7)])
            await first.until(7)  # what the other has stored is what it would have stored itself
    assert await ids(client) == places(1, 2, 3, 4, 5, 6, 7)


async def test_what_came_between_shifts_all_that_follows(client: Client) -> None:
    async with running(client) as first:
        await first.send([message(1), message(2)], is_whole=False)
        await until_stored(client, 2)
        async with running(client) as second:
            await second.send([message(100), message(3), message(4)])
            await second.until(5)
        await first.send([message(3), message(4)])
        assert isinstance(await first.failure(), FencedError)
    assert await ids(client) == places(1, 2, 100, 3, 4)


async def _limit(client: Client, size: int) -> None:
    """Let the stream refuse larger messages."""
    js = client.jetstream()
    info = await js.stream_info(JetStreamPublisher(client, DATABASE).stream)
    await js.update_stream(info.config, max_msg_size=size)


async def test_a_message_that_is_refused_amid_a_run_ends_it_there(client: Client) -> None:
    large = message(3, b"x" * 2000)
    async with running(client) as run:
        await _limit(client, 1000)
        await run.send([message(1), message(2), large, message(4), message(5)])
        assert isinstance(await run.failure(), FencedError)
    assert await ids(client) == places(1, 2)
    async with running(client) as run:
        await run.send([large, message(4), message(5)])
        assert "maximum" in str(await run.failure())
    assert await ids(client) == places(1, 2)


async def test_a_run_that_cannot_begin_tells_why(client: Client) -> None:
    js = client.jetstream()
    async with running(client) as run:
        info = await js.stream_info(JetStreamPublisher(client, DATABASE).stream)
        await js.update_stream(info.config, max_msgs=1, discard=api.DiscardPolicy.NEW)
        await run.send([message(1), message(2)])
        await run.failure()
    async with running(client) as run:
        await run.send([message(2), message(3)])
        assert "maximum messages" in str(await run.failure())
