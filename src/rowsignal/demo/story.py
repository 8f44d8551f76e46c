"""The demonstration: a server, a shop whose orders change, and a wait for each order."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.demo.report import DemoReport, Tally
from rowsignal.demo.shop import create_shop, run_shop
from rowsignal.demo.shop_tables import Base
from rowsignal.demo.waits import TABLE, Commits, Outcome, Waits
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.hooks import Hooks, Mode
from rowsignal.listener import Listener
from rowsignal.triggers import install_triggers

WAIT_TIMEOUT = 30.0
FRAME = 0.125

Page = Callable[[str], contextlib.AbstractAsyncContextManager[str]]


@dataclass(frozen=True, slots=True)
class View:
    """The figures to show at one moment."""

    tally: Tally
    mode: Mode
    waiting: int
    commits: int
    notifications: int


class Stage(Protocol):
    """Callback interface of a screen."""

    def tell(self, sentence: str) -> None:
        """Report a step."""

    def resolved(self, outcome: Outcome) -> None:
        """Show a wait that has ended."""

    def refresh(self, view: View) -> None:
        """Show the figures; called several times per second."""


class Arming(Hooks):
    """Sets an event when the table is armed for the first time."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def mode_changed(self, *, table: str, mode: Mode) -> None:
        """Set the event at the first arming."""
        if table == ".".join(TABLE) and mode == "armed":
            self.done.set()


async def tell_story(
    stage: Stage, *, goal: int | None = None, rate: float = 6.0, page: Page | None = None
) -> DemoReport:
    """Run the demonstration until `goal` waits have ended, or until Ctrl-C; return its report.

    `rate` is the writer's transactions per second. `page` takes the URL of the database, serves a
    page for it and yields the page's address. Raises `TimeoutError` if the goal is not reached in
    30 s.
    """
    async with contextlib.AsyncExitStack() as stack:
        server = await stack.enter_async_context(_server(stage))
        engine = await stack.enter_async_context(opened_engine(server.url))
        writer = await stack.enter_async_context(opened_engine(server.url))
        await create_shop(engine)
        await install_triggers(engine, Base, log=True, row_values=True)
        stage.tell("made a shop: customers, items and orders, with triggers that keep a log")
        if page is not None:
            address = await stack.enter_async_context(page(server.url))
            stage.tell(f"the page with live tables is at {address}")
        arming = Arming()
        listener = await stack.enter_async_context(Listener(engine, hooks=arming))
        commits = stack.enter_context(Commits(writer))
        tally, is_over = Tally(), stack.enter_context(interruption())

        def note(outcome: Outcome) -> None:
            tally.add(outcome)
            stage.resolved(outcome)
            if goal is not None and tally.count >= goal:
                is_over.set()

        waits = Waits(engine, commits, note)
        show = _showing(stage, tally, waits, commits, listener)
        async with beside(waits.run(), show):
            await asyncio.wait_for(arming.done.wait(), WAIT_TIMEOUT)
            stage.tell("one wait for each open order; orders change now")
            shop = run_shop(writer, rate=rate, stop=is_over)
            await asyncio.wait_for(shop, None if goal is None else WAIT_TIMEOUT)
            missed = await _missed(waits)
        return DemoReport(
            server_version=server.version,
            commits=commits.count,
            waits=tally.count,
            notified=tally.notified,
            missed=missed,
            notifications=listener.state.notifications,
            p50=tally.percentile(0.5),
            p99=tally.percentile(0.99),
            slowest=tally.slowest,
        )


@contextlib.asynccontextmanager
async def _server(stage: Stage) -> AsyncIterator[EmbeddedPostgres]:
    began = time.perf_counter()
    async with EmbeddedPostgres() as server:
        seconds = time.perf_counter() - began
        stage.tell(f"started PostgreSQL {server.version} in {seconds:.1f} s; it ends with this")
        yield server


@contextlib.asynccontextmanager
async def opened_engine(url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine, and dispose of it."""
    engine = create_async_engine(url)
    try:
        yield engine
    finally:
        await engine.dispose()


@contextlib.contextmanager
def interruption() -> Iterator[asyncio.Event]:
    """Yield an event that Ctrl-C and SIGTERM set, so that the report is still printed."""
    loop, is_over = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    with contextlib.suppress(NotImplementedError, RuntimeError):  # Windows; not the main thread
        for number in signals:
            loop.add_signal_handler(number, is_over.set)
    try:
        yield is_over
    finally:
        with contextlib.suppress(NotImplementedError, RuntimeError):
            for number in signals:
                loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def beside(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run work during the block; its failure ends the block."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work) for work in works]
        yield
        for task in tasks:
            task.cancel()


async def _showing(
    stage: Stage, tally: Tally, waits: Waits, commits: Commits, listener: Listener
) -> None:
    while True:
        notifications = listener.state.notifications
        stage.refresh(View(tally, waits.mode, waits.open, commits.count, notifications))
        await asyncio.sleep(FRAME)


async def _missed(waits: Waits) -> int:
    """Count the orders whose last change ended no wait, after a grace period."""
    for _ in range(20):
        missed = await waits.missed()
        if not missed:
            return 0
        await asyncio.sleep(0.1)
    return len(missed)
