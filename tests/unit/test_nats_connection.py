"""What nats-py does to cancellations, and that ours arrive."""

import asyncio

import pytest

from rowsignal.nats.connection import heeding_cancellation


async def dropping(answer: asyncio.Future[int]) -> int:
    """Wait as `asyncio.wait_for` of Python 3.11 does: an answer outweighs a cancellation."""
    try:
        return await answer
    except asyncio.CancelledError:
        return 1


async def test_a_cancellation_that_was_dropped_arrives() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(heeding_cancellation(dropping(answer)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_timeout_that_was_dropped_arrives_as_one() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await heeding_cancellation(dropping(answer))


async def test_an_answer_is_returned() -> None:
    answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    answer.set_result(5)
    assert await heeding_cancellation(dropping(answer)) == 5
