"""How many streams there may be, in all and of one principal."""

import pytest
from sqlalchemy.ext.asyncio import create_async_engine

from rowsignal.exceptions import ReaderLimitError
from rowsignal.sse import Limits
from rowsignal.sse.delivery.fanout import FanOut


def fan_out(most: int, each: int) -> FanOut:
    """Return one whose engine never connects: no feed is opened here."""
    engine = create_async_engine("postgresql+asyncpg://nobody@localhost/none")
    return FanOut(engine, {}, Limits(max_streams=most, max_streams_per_principal=each))


async def test_a_principal_has_a_share_and_may_close_streams_to_open_others() -> None:
    fanout = fan_out(most=10, each=2)
    await fanout.acquire("ann")
    await fanout.acquire("ann")
    with pytest.raises(ReaderLimitError, match="You have 2 streams open") as refusal:
        await fanout.acquire("ann")
    assert refusal.value.is_own
    await fanout.acquire("bob")
    fanout.release("ann")
    await fanout.acquire("ann")
    assert fanout.readers == 3


async def test_the_whole_is_bounded_for_all_principals() -> None:
    fanout = fan_out(most=2, each=2)
    await fanout.acquire("ann")
    await fanout.acquire("bob")
    with pytest.raises(ReaderLimitError, match="All 2 streams are taken") as refusal:
        await fanout.acquire("cy")
    assert not refusal.value.is_own
    fanout.release("bob")
    await fanout.acquire("cy")


async def test_a_principal_without_streams_is_forgotten() -> None:
    fanout = fan_out(most=2, each=2)
    for number in range(100):
        await fanout.acquire(f"visitor {number}")
        fanout.release(f"visitor {number}")
    assert fanout.readers == 0
    assert not fanout._principals


async def test_a_process_that_stops_takes_no_streams() -> None:
    fanout = fan_out(most=2, each=2)
    fanout.close()
    with pytest.raises(ReaderLimitError, match="stopping"):
        await fanout.acquire("ann")
    assert not fanout.has_feeds
