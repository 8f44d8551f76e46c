"""What a reader's buffer holds, joins, conflates and gives up, without a connection."""

import asyncio

import pytest

from rowsignal.sse.delivery.buffers import JOINED, ConflatingReader, Reader


def drained(reader: Reader) -> list[bytes]:
    """Take until there is nothing to take."""
    return list(iter(reader.take, b""))


def test_small_chunks_are_joined_into_one_write() -> None:
    reader = Reader(limit=1000)
    for chunk in (b"a", b"b", b"c"):
        reader.push(chunk)
    assert drained(reader) == [b"abc"]


def test_large_chunks_are_passed_on_as_they_are() -> None:
    reader, chunk = Reader(limit=10 * JOINED), b"x" * JOINED
    reader.push(chunk)
    reader.push(b"y")
    taken = reader.take()
    assert taken is chunk, "all readers share it: no copy"
    assert drained(reader) == [b"y"]


def test_one_burst_may_be_larger_than_the_buffer() -> None:
    reader = Reader(limit=10)
    reader.push(b"x" * 50)
    assert not reader.overflowed
    assert drained(reader) == [b"x" * 50]


@pytest.mark.parametrize("kind", [Reader, ConflatingReader])
def test_a_reader_beyond_its_limit_gets_a_reset_alone_and_ends(kind: type[Reader]) -> None:
    reader = kind(limit=10)
    reader.push(b"12345678")
    reader.push(b"9abc")
    assert (reader.overflowed, reader.is_closed) == (True, True)
    reader.push(b"more")
    (last,) = drained(reader)
    assert b"event: reset\n" in last
    assert b"more than 10 bytes behind" in last
    assert b"12345678" not in last


@pytest.mark.parametrize("kind", [Reader, ConflatingReader])
def test_the_last_word_comes_after_what_waits(kind: type[Reader]) -> None:
    reader, closed = kind(limit=100), list[str]()
    reader.on_close = lambda: closed.append("closed")
    reader.push(b"first ")
    reader.close(b"bye")
    reader.close(b"again")
    assert b"".join(drained(reader)) == b"first bye"
    assert closed == ["closed"]


def test_a_reader_whose_client_is_gone_stops_its_task_once() -> None:
    reader, aborted = Reader(limit=10), list[str]()
    reader.abort = lambda: aborted.append("aborted")
    reader.give_up()
    reader.give_up()
    reader.push(b"late")
    assert (reader.is_gone, reader.is_closed, aborted) == (True, True, ["aborted"])
    assert drained(reader) == []


@pytest.mark.parametrize("kind", [Reader, ConflatingReader])
async def test_a_push_wakes_the_reader_that_waits(kind: type[Reader]) -> None:
    reader = kind(limit=100)
    arrival = reader.arrival()
    assert arrival is not None
    asyncio.get_running_loop().call_soon(reader.push, b"now")
    async with asyncio.timeout(10):
        await arrival
    assert reader.arrival() is None
    assert reader.take() == b"now"


async def test_closing_wakes_the_reader_that_waits() -> None:
    reader = Reader(limit=100)
    arrival = reader.arrival()
    assert arrival is not None
    reader.close(b"")
    assert arrival.done()
    assert reader.arrival() is None, "nothing more will come"
    assert reader.take() == b""


def test_of_a_row_only_the_newest_frame_is_kept_and_order_is_that_of_the_newest() -> None:
    reader = ConflatingReader(limit=100)
    reader.push(b"", [("a", b"a1 "), ("b", b"b1 ")])
    reader.push(b"", [("a", b"a2 ")])
    reader.push(b"heartbeat ")
    assert reader.conflated == 1
    assert drained(reader) == [b"b1 a2 heartbeat "]


def test_a_reader_that_conflates_does_not_fall_behind_by_one_row() -> None:
    reader = ConflatingReader(limit=10)
    for number in range(1000):
        reader.push(b"", [("a", b"%08d" % number)])
    assert not reader.overflowed
    assert drained(reader) == [b"00000999"]
