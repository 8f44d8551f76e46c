"""Readers that go from gateway to gateway at random, and keep what they received."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, NoReturn

from rowsignal.demo.scale.ledger import RowId
from rowsignal.demo.scale.parts import HOST, GatewayPart
from rowsignal.demo.scale.sse import AWAY, Received, open_stream

LONGEST_STAY = 2.0  # seconds at one gateway
PAUSE = 0.1
CHANGES = frozenset({"insert", "update", "delete"})


class Seen(NamedTuple):
    """One change that was received, and after how many resets."""

    part: int
    row: RowId
    operation: str
    transaction: str


Rows = Mapping[RowId, Mapping[str, Any]]


class Account(NamedTuple):
    """The changes, resets and rows of a reader at one moment."""

    seen: Sequence[Seen]
    resets: int
    rows: Rows


class Follower:
    """One reader: what it received, and the rows as it knows them."""

    def __init__(self, number: int, gateways: Sequence[GatewayPart], tables: Sequence[str]) -> None:
        self.number = number
        self.gateway = gateways[0]
        self.seen: list[Seen] = []
        self.rows: dict[RowId, dict[str, Any]] = {}
        self.hops = 0
        self.resets = 0
        self.moved = asyncio.Event()
        self.is_level = asyncio.Event()  # the current rows are there
        self._gateways = gateways
        self._tables = tables
        self._last_id = ""
        self._random = Random(number)  # noqa: S311 -- a story, not a secret

    def account(self) -> Account:
        """Return what it has just now."""
        return Account(tuple(self.seen), self.resets, dict(self.rows))

    async def run(self) -> NoReturn:
        """Follow the tables until cancelled."""
        while True:
            self.gateway = self._random.choice(self._gateways)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._random.uniform(0.2, LONGEST_STAY)):
                    await self._follow()
            self.hops += 1

    async def _follow(self) -> None:
        """Read one stream to its end, its cut or the caller's timeout."""
        port = self.gateway.port
        if not self._last_id:
            self.rows.clear()  # the current rows come again, from the first on
        try:
            async with open_stream(HOST, port, self._tables, self._last_id) as stream:
                while (events := await stream.next()) is not None:
                    self._take_all(events)
        except AWAY:
            await asyncio.sleep(PAUSE)

    def _take_all(self, events: Iterable[Received]) -> None:
        for event in events:
            self._take(event)

    def _take(self, event: Received) -> None:
        if event.name == "reset":
            self._begin_anew()
            return
        row = _row_of(event)
        if row is not None and event.name in {"snapshot", "insert", "update"}:
            self.rows[row] = dict(event.data["row"])
        elif row is not None and event.name == "delete":
            self.rows.pop(row, None)
        if row is not None and event.name in CHANGES:
            transaction = str(event.data["transaction_id"])
            self.seen.append(Seen(self.resets, row, event.name, transaction))
            self.moved.set()
        # Each event's id stands for all before it; within the current rows there is none yet.
        self._last_id = event.id or self._last_id
        if event.name == "snapshot-end":
            self.is_level.set()

    def _begin_anew(self) -> None:
        """Take the current rows: what was missed is in them."""
        self.resets += 1
        self.is_level.clear()
        self._last_id = ""


def _row_of(event: Received) -> RowId | None:
    key = event.data.get("key")
    return None if not key else (f"{event.data['schema']}.{event.data['table']}", int(key["id"]))
