"""The machine that goes between armed, busy and polling: its pauses, failures and wakes."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from rowsignal.hooks import Hooks
from rowsignal.listener.hints import Target
from rowsignal.listener.pacing import CheckResult, Mode, Pace, Pacer, Rate


class Hold:
    async def release(self) -> None:
        return None


class Armory:
    """Arms, or refuses to, as a listener does."""

    def __init__(self, *, is_listening: bool) -> None:
        self.hooks = Hooks()
        self.is_listening = is_listening

    async def arm(self, target: Target) -> Hold | None:
        return Hold() if self.is_listening else None


class Subject:
    """Counts its reads; they fail, or find changes, as told."""

    label = "things"
    is_streaming = False

    def __init__(self, *, interval: float = 0.01) -> None:
        self.interval = interval
        self.reads = asyncio.Semaphore(0)
        self.checks = asyncio.Semaphore(0)
        self.modes: list[Mode] = []
        self.entered = asyncio.Condition()
        self.failures: list[Exception] = []
        self.has_changed = False
        self.result: CheckResult = "written"

    async def targets(self) -> Sequence[Target] | None:
        if self.failures:
            raise self.failures.pop()
        return [1]

    async def check(self) -> CheckResult:
        self.checks.release()
        return self.result

    async def writers(self) -> frozenset[str]:
        return frozenset()

    async def read(self) -> bool:
        self.reads.release()
        return self.has_changed

    def mode_changed(self, mode: Mode) -> None:
        self.modes.append(mode)


@asynccontextmanager
async def running(pacer: Pacer) -> AsyncIterator[None]:
    task = asyncio.create_task(pacer.run())
    try:
        async with asyncio.timeout(30):
            yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def until_mode(pacer: Pacer, mode: Mode) -> None:
    while pacer.mode != mode:
        await asyncio.sleep(0)


@pytest.mark.parametrize("cost", [0.0, 0.001, 1.0, 5.0, 1000.0])
@pytest.mark.parametrize("interval", [0.01, 0.5, 30.0])
def test_a_pause_is_never_longer_than_the_interval_promised(cost: float, interval: float) -> None:
    pacer = Pacer(Armory(is_listening=True), Subject(interval=interval), Pace())
    pause = pacer._pause(cost)
    assert 0.01 <= pause <= min(interval, Pace().longest_pause)


async def test_without_notifications_it_polls_and_arms_when_woken() -> None:
    armory, subject = Armory(is_listening=False), Subject()
    pacer = Pacer(armory, subject, Pace())
    async with running(pacer):
        for _ in range(3):
            await subject.reads.acquire()
        assert pacer.mode == "polling"
        armory.is_listening = True
        pacer.wake()
        await until_mode(pacer, "armed")
    assert subject.modes == ["polling", "settling", "armed"]


async def test_a_read_may_be_requested_in_every_mode() -> None:
    for is_listening, mode in ((True, "armed"), (False, "polling")):
        subject = Subject(interval=3600)
        pacer = Pacer(Armory(is_listening=is_listening), subject, Pace())
        async with running(pacer):
            while pacer.mode != mode:
                await asyncio.sleep(0)
            while not subject.reads.locked():
                await subject.reads.acquire()
            pacer.request_read()
            await subject.reads.acquire()
            assert pacer.mode == mode


async def test_what_is_unchanged_is_checked_and_read_on_request_alone() -> None:
    subject = Subject(interval=3600)
    subject.result = "unchanged"
    pacer = Pacer(Armory(is_listening=True), subject, Pace(safety=0.001))
    async with running(pacer):
        await until_mode(pacer, "armed")
        while not subject.reads.locked():
            await subject.reads.acquire()
        for _ in range(5):
            await subject.checks.acquire()
        assert subject.reads.locked()
        pacer.request_read()
        await subject.reads.acquire()
        subject.result = "written"
        await subject.reads.acquire()
        subject.result = "altered"
        while subject.modes.count("settling") < 2:
            await asyncio.sleep(0)


async def test_too_many_notifications_make_it_busy_until_nothing_changes() -> None:
    subject = Subject()
    pacer = Pacer(Armory(is_listening=True), subject, Pace(busy_rate=10, cooldown=0.05))
    async with running(pacer):
        await until_mode(pacer, "armed")
        subject.has_changed = True
        pacer.notified(20)
        await until_mode(pacer, "busy")
        for _ in range(5):
            await subject.reads.acquire()
        assert pacer.mode == "busy"
        subject.has_changed = False
        await until_mode(pacer, "armed")
    assert subject.modes == ["settling", "armed", "busy", "settling", "armed"]


async def test_whatever_fails_it_goes_on() -> None:
    subject = Subject()
    subject.failures = [ValueError("x"), ConnectionError("y"), RecursionError("z")]
    pacer = Pacer(Armory(is_listening=True), subject, Pace())
    async with running(pacer):
        await until_mode(pacer, "armed")
    assert subject.failures == []


def test_a_rate_is_high_when_a_seconds_worth_has_come_together() -> None:
    rate = Rate(10)
    rate.add(9)
    assert not rate.is_high
    rate.add(2)
    assert rate.is_high
    rate.clear()
    assert not rate.is_high
