"""Waits for every open order of the shop, with their latency after the commit."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy import Connection, event, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from rowsignal.changes import Change
from rowsignal.demo.shop_tables import NEXT_STATUS, Order
from rowsignal.dispatcher import Dispatcher
from rowsignal.exceptions import NotFoundError
from rowsignal.hooks import Mode
from rowsignal.streams import watch
from rowsignal.waiting import wait_for_row_change

INTERVAL = 5.0  # interval of reads in a wait that polls
PROMPT = 1.0  # a fifth of that: not reached by polling, even on a slow machine
TABLE = ("shop", "orders")
GONE = "archived"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A wait that has ended: `seconds` from the writer's COMMIT to its return, and the `mode`."""

    order: int
    before: str
    after: str
    seconds: float
    mode: Mode

    @property
    def is_notified(self) -> bool:
        """Tell whether a notification ended it, not a read in an interval."""
        return self.mode == "armed" and self.seconds < PROMPT


class Commits:
    """Records when the transactions of a writer begin to commit, by order."""

    def __init__(self, writer: AsyncEngine) -> None:
        self.count = 0
        self._engine = writer.sync_engine
        self._at: dict[int, float] = {}

    def __enter__(self) -> Self:
        event.listen(Session, "after_flush", self._flushed)
        event.listen(self._engine, "commit", self._committing)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(Session, "after_flush", self._flushed)
        event.remove(self._engine, "commit", self._committing)

    def seconds_since(self, order: int) -> float:
        """Return the seconds since the last commit of an order."""
        now = time.perf_counter()
        return now - self._at.get(order, now)

    def _flushed(self, session: Session, _: object) -> None:
        if session.get_bind() is self._engine:
            touched = (*session.new, *session.dirty, *session.deleted)
            orders = {thing.id for thing in touched if isinstance(thing, Order)}
            session.connection().info.setdefault("orders", set()).update(orders)

    def _committing(self, connection: Connection) -> None:
        orders: set[int] = connection.info.pop("orders", set())
        self.count += bool(orders)
        self._at.update(dict.fromkeys(orders, time.perf_counter()))


class Waits:
    """Waits for each open order, again and again until it is closed."""

    def __init__(
        self, engine: AsyncEngine, commits: Commits, note: Callable[[Outcome], None]
    ) -> None:
        self.seen: dict[int, str] = {}
        self._engine = engine
        self._commits = commits
        self._note = note

    @property
    def mode(self) -> Mode:
        """The mode of the table."""
        table = Dispatcher.of(self._engine).tables.get(TABLE)
        return table.watch.mode if table else "stopped"

    @property
    def open(self) -> int:
        """Count the open waits."""
        return sum(status in NEXT_STATUS for status in self.seen.values())

    async def run(self) -> None:
        """Wait for all open and new orders until cancelled."""
        async with (
            watch(self._engine, Order, operations=["insert"]) as placed,
            asyncio.TaskGroup() as group,
        ):
            async with AsyncSession(self._engine) as session:
                is_open = Order.status.in_(NEXT_STATUS)
                known = (await session.scalars(select(Order.id).where(is_open))).all()
            for order in known:
                group.create_task(self._follow(order))
            async for change in placed:
                if isinstance(change, Change) and change.key is not None:
                    group.create_task(self._follow(change.key["id"]))

    async def missed(self) -> dict[int, str]:
        """Return the orders whose last change ended no wait."""
        async with AsyncSession(self._engine) as session:
            rows: Any = await session.execute(select(Order.id, Order.status))
            stored = {order: status for order, status in rows if order in self.seen}
        return {order: status for order, status in stored.items() if self.seen[order] != status}

    async def _follow(self, number: int) -> None:
        async with AsyncSession(self._engine, expire_on_commit=False) as session:
            order = await session.get(Order, number)
            await session.commit()  # no connection is held from here on
            while order is not None and order.status in NEXT_STATUS:
                before = self.seen[number] = order.status
                try:
                    order = await wait_for_row_change(session, Order, number, interval=INTERVAL)
                except NotFoundError:
                    self.seen[number] = GONE
                else:
                    self.seen[number] = order.status
                seconds = self._commits.seconds_since(number)
                self._note(Outcome(number, before, self.seen[number], seconds, self.mode))
                if self.seen[number] == GONE:
                    return
