"""Turns go round the principals, and none of them holds all places."""

import asyncio

from rowsignal.sse.delivery.turns import FairTurns


async def test_the_next_place_goes_to_the_principal_that_has_waited_for_its_turn():
    turns = FairTurns(2, each=2)
    held = [turns.request("greedy") for _ in range(2)]
    waiting = [turns.request("greedy") for _ in range(3)]
    other = turns.request("other")
    held[0].release()
    assert waiting[0].granted.done()
    held[1].release()
    assert other.granted.done()
    assert not waiting[1].granted.done()


async def test_a_principal_leaves_a_place_to_others():
    turns = FairTurns(4, each=3)
    greedy = [turns.request("greedy") for _ in range(60)]
    assert sum(turn.granted.done() for turn in greedy) == 3
    assert turns.request("other").granted.done()


async def test_a_turn_that_is_given_up_is_neither_granted_nor_lost():
    turns = FairTurns(1)
    first, given_up, last = (turns.request("a") for _ in range(3))
    given_up.release()
    first.release()
    first.release()
    assert not given_up.granted.done()
    assert last.granted.done()
    last.release()
    assert turns.request("b").granted.done()


async def test_a_cancelled_wait_gives_its_place_back():
    turns = FairTurns(1)

    async def work() -> None:
        async with turns.request("a"):
            await asyncio.Event().wait()

    working = [asyncio.create_task(work()) for _ in range(2)]
    await asyncio.sleep(0)
    for task in working:
        task.cancel()
    await asyncio.gather(*working, return_exceptions=True)
    assert turns.request("b").granted.done()
