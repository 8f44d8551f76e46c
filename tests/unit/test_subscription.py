"""What a subscription of the log makes of the batches that are pushed to it."""

import asyncio
from typing import Any, cast

import pytest

from rowsignal.change_log import Batch, ChangeLog
from rowsignal.change_log.subscription import LogSubscription
from rowsignal.changes import Change, Operation, Reset
from rowsignal.exceptions import PositionError

ORDERS, ITEMS = ("public", "orders"), ("public", "items")


class Source:
    """Pushes what a test says; a test that reads the log itself has a real one."""

    log = cast("ChangeLog", None)

    def __init__(self) -> None:
        self.pushed_to: LogSubscription | None = None

    async def attach(self, subscription: LogSubscription) -> str:
        self.pushed_to = subscription
        subscription.attached("start")
        return "start"

    def detach(self, subscription: LogSubscription) -> None:
        assert subscription is self.pushed_to
        self.pushed_to = None


def change(key: int, table: tuple[str, str] = ORDERS) -> Change:
    return Change(operation=Operation.INSERT, schema=table[0], table=table[1], key={"id": key})


def batch(position: str, *changes: Change) -> Batch:
    return Batch(changes=list(changes), position=position)


def keys(item: Batch | Reset) -> list[Any]:
    assert isinstance(item, Batch)
    return [it.key["id"] for it in item.changes if it.key is not None]


async def subscribed(
    limit: int = 100, tables: tuple[tuple[str, str], ...] = (ORDERS,)
) -> tuple[Source, LogSubscription]:
    source = Source()
    subscription = LogSubscription(source, tables, None, limit)
    await subscription.begin()
    return source, subscription


async def test_batches_come_in_order_and_move_the_position() -> None:
    _, subscription = await subscribed()
    assert (subscription.position, subscription.has_unread) == ("start", False)
    subscription.push(batch("one", change(1)))
    subscription.push(batch("two", change(2), change(3)))
    assert subscription.has_unread
    assert keys(await anext(subscription)) == [1]
    assert subscription.position == "one"
    assert keys(await anext(subscription)) == [2, 3]
    assert (subscription.position, subscription.has_unread) == ("two", False)


async def test_changes_of_other_tables_are_left_out_and_move_the_position() -> None:
    _, subscription = await subscribed()
    subscription.push(batch("one", change(1, ITEMS), change(2), change(3, ITEMS)))
    subscription.push(batch("two", change(4, ITEMS)))
    subscription.push(batch("three", change(5, ITEMS)))
    assert keys(await anext(subscription)) == [2]
    assert subscription.position == "three", "nothing of its own was in the two after it"


async def test_a_reset_is_passed_on_between_batches() -> None:
    _, subscription = await subscribed()
    subscription.push(batch("one", change(1)))
    subscription.push(Reset(reason="The log began anew.", position="two"))
    assert keys(await anext(subscription)) == [1]
    assert isinstance(await anext(subscription), Reset)
    assert subscription.position == "two"


async def test_one_that_is_too_slow_is_detached_and_drops_what_it_can_read_again() -> None:
    source, subscription = await subscribed(limit=3)
    subscription.push(batch("one", change(1), change(2)))
    subscription.push(batch("two", change(3), change(4)))
    assert source.pushed_to is None
    assert subscription.is_behind
    assert not subscription.has_unread
    assert subscription.position == "start", "it reads from there by itself"


async def test_one_that_is_told_to_lag_takes_what_was_pushed_first() -> None:
    _, subscription = await subscribed()
    subscription.push(batch("one", change(1)))
    subscription.lag("one")
    assert subscription.is_behind
    assert keys(await anext(subscription)) == [1]


async def test_a_push_wakes_the_reader_and_an_interruption_does_too() -> None:
    _, subscription = await subscribed()
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(10):
        loop.call_soon(subscription.push, batch("one", change(1)))
        assert keys(await anext(subscription)) == [1]
        loop.call_soon(subscription.interrupt)
        interruption = await anext(subscription)
    assert keys(interruption) == []
    assert (interruption.position, subscription.position) == ("one", "one")


async def test_an_error_of_the_tail_is_raised_after_what_came_before_it() -> None:
    _, subscription = await subscribed()
    subscription.push(batch("one", change(1)))
    subscription.fail(ConnectionError("gone"))
    assert keys(await anext(subscription)) == [1]
    for _ in range(2):
        with pytest.raises(ConnectionError, match="gone"):
            await anext(subscription)


def test_text_that_is_no_position_is_refused_at_once() -> None:
    with pytest.raises(PositionError):
        LogSubscription(Source(), (ORDERS,), "yesterday", 10)
