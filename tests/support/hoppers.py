"""Readers that go from gateway to gateway with the last id that they got, and miss nothing."""

import asyncio
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field

from sqlalchemy.ext.asyncio import AsyncEngine

from support.change_log import connect
from support.event_streams import EventReader, execute, reading

STRESS = os.environ.get("ROWSIGNAL_STRESS", "60")  # a number, or "minutes"
ROUNDS = int(STRESS) if STRESS.isdigit() else 10_000  # of 100 changes each
ROWS = 100
HOP_AFTER = 250 if ROUNDS <= 100 else 2000  # events, on average
FILL = f"insert into orders select n, 'open', 0, 1, '' from generate_series(1, {ROWS}) n"
PATH = "/v1/changes/orders"
UNTOLD = 10**9  # rounds, before anybody knows how many there will be
AWAY = (OSError, asyncio.IncompleteReadError, TimeoutError)

Arrive = Callable[[], int]


@dataclass
class Hopper:
    """One reader; `arrive` names the port of its next visit, `silence` ends one without news."""

    arrive: Arrive
    path: str = PATH
    begins_with_rows: bool = False
    silence: float | None = None
    stays: bool = False
    rounds: int = ROUNDS
    totals: dict[int, list[int]] = field(default_factory=dict)
    hops: int = 0
    last_id: str = ""
    is_level: asyncio.Event = field(default_factory=asyncio.Event)
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    _chance: random.Random = field(default_factory=lambda: random.Random(7))

    def is_done(self) -> bool:
        """Tell whether every row has counted to the end."""
        return len(self.totals) == ROWS and all(
            it[-1] >= self.rounds for it in self.totals.values()
        )

    @property
    def count(self) -> int:
        """How many events there were."""
        return sum(map(len, self.totals.values()))

    async def received(self, more: int) -> None:
        """Wait until it has received some more events."""
        wanted = self.count + more
        while self.count < wanted:
            self.moved.clear()
            await self.moved.wait()

    async def run(self) -> None:
        """Read until every row has counted to the end, through whatever goes away."""
        while not self.is_done():
            most = 10**9 if self.stays else self._chance.randint(1, 2 * HOP_AFTER)
            try:
                await self._read(self.arrive(), most)
            except AWAY:
                await asyncio.sleep(0.02)  # a gateway that is starting again
            self.hops += 1

    async def _read(self, port: int, most: int) -> None:
        headers = {"Last-Event-ID": self.last_id} if self.last_id else None
        rows = "?snapshot=true" if self.begins_with_rows and not self.last_id else ""
        if rows:  # it left before the rows were complete, and begins anew
            self.totals.clear()
        patience = self.silence or 30.0
        async with reading(
            port, f"{self.path}{rows}", headers=headers, patience=patience
        ) as reader:
            seen, goes_on = 0, True
            while goes_on and seen < most and not self.is_done():
                goes_on = await self._some(reader)
                seen += self._take(reader)
                # An id counts for all that came before it: a cut never falls between here.
                self.last_id = reader.last_id or self.last_id
                if self.last_id and (rows == "" or "." in self.last_id):
                    self.is_level.set()

    async def _some(self, reader: EventReader) -> bool:
        async with asyncio.timeout(self.silence):
            return await reader.read_some()

    def _take(self, reader: EventReader) -> int:
        seen = 0
        for event in reader.events:
            assert event.name != "reset", event
            if event.name in {"insert", "update", "snapshot"}:
                self.totals.setdefault(event.key, []).append(int(event.data["row"]["total"]))
                seen += 1
        reader.events.clear()
        self.moved.set()
        return seen

    def check(self) -> None:
        """Fail where a count of a row is missing, doubled or out of order."""
        assert len(self.totals) == ROWS
        for counted in self.totals.values():
            wanted = list(range(counted[0], self.rounds + 1))
            assert counted == wanted, (self.hops, counted)
        if not self.begins_with_rows:
            assert all(counted[0] == 0 for counted in self.totals.values())


def in_turns(ports: Sequence[int]) -> Arrive:
    """Return what names one port after the other, in an order of chance."""
    chance = random.Random(11)
    return lambda: chance.choice(ports)


async def count_up(engine: AsyncEngine, rounds: int = ROUNDS) -> None:
    """Add 1 to every row, again and again."""
    connection = await connect(engine)
    try:
        for _ in range(rounds):
            await connection.execute("update orders set total = total + 1")
    finally:
        connection.terminate()


async def hop(
    engine: AsyncEngine,
    hoppers: Sequence[Hopper],
    during: Callable[[], Coroutine[None, None, None]] | None = None,
    *,
    rounds: int = ROUNDS,
) -> None:
    """Let readers follow while rows are counted up, and something else happens; check them."""
    for hopper in hoppers:
        hopper.rounds = UNTOLD
    async with asyncio.TaskGroup() as group:
        for hopper in hoppers:
            group.create_task(hopper.run())
        for hopper in hoppers:
            await hopper.is_level.wait()
        await execute(engine, FILL)
        written = rounds // 3
        await count_up(engine, written)
        beside = group.create_task(during()) if during else None
        await count_up(engine, rounds - written - 1)
        written = rounds - 1
        while beside and not beside.done():  # it may need news: go on, slowly, until it is over
            await count_up(engine, 1)
            written += 1
            await asyncio.wait([beside], timeout=0.05)
        for hopper in hoppers:
            hopper.rounds = written + 1
        await count_up(engine, 1)
    for hopper in hoppers:
        hopper.check()
