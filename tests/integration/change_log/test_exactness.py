"""The promise as a whole: many writers, readers cut anywhere; each change once, rows in order."""

import asyncio
import os
import random
from collections import defaultdict
from dataclasses import dataclass, field

import asyncpg
import pytest

from rowsignal.changes import Reset
from rowsignal.retention import Retention, prune
from support.change_log import Shop

ROWS = 30
SECONDS = 60.0 if os.environ.get("ROWSIGNAL_STRESS") == "minutes" else 2.5


class RolledBackError(Exception):
    """Ends a transaction or a savepoint."""


async def write_some(connection: asyncpg.Connection, chance: random.Random) -> None:
    """Count some rows up, in savepoints that may be rolled back, with pauses."""
    for row in sorted(chance.sample(range(ROWS), chance.randint(1, 3))):
        try:
            async with connection.transaction():
                await connection.execute("update item set v = v + 1 where id = $1", row)
                if chance.random() < 0.2:
                    raise RolledBackError  # noqa: TRY301 -- rolls the savepoint back
        except RolledBackError:
            pass
        if chance.random() < 0.3:
            await asyncio.sleep(chance.random() * 0.02)
    if chance.random() < 0.15:
        raise RolledBackError


async def write(connection: asyncpg.Connection, seed: int, stop: asyncio.Event) -> None:
    chance = random.Random(seed)
    while not stop.is_set():
        try:
            async with connection.transaction():
                await write_some(connection, chance)
        except RolledBackError:
            pass


async def hold_open(connection: asyncpg.Connection, row: int, stop: asyncio.Event) -> None:
    """Change a row of one's own in transactions that take long to commit."""
    await connection.execute("insert into item values ($1, 0)", row)
    while not stop.is_set():
        async with connection.transaction():
            await connection.execute("update item set v = v + 1 where id = $1", row)
            await asyncio.sleep(0.4)


@dataclass
class Reader:
    """Reads pages of any size and resumes, now and then, after a change in the middle of one."""

    shop: Shop
    position: str
    chance: random.Random
    seen: list[tuple[int, int, int]] = field(default_factory=list)

    async def read(self) -> bool:
        """Read a page; tell whether more is waiting."""
        limit = self.chance.choice([1, 2, 5, 50, 1000])
        batch = await self.shop.log.read(self.position, limit=limit)
        assert not isinstance(batch, Reset), batch
        changes, self.position = batch.changes, batch.position
        is_cut = bool(changes) and self.chance.random() < 0.5
        if is_cut:
            changes = changes[: self.chance.randint(1, len(changes))]
            self.position = changes[-1].position or ""
        for change in changes:
            assert change.key is not None
            assert change.row is not None
            assert change.transaction_id is not None
            self.seen.append((change.transaction_id, change.key["id"], change.row["v"]))
        return is_cut or not batch.is_complete

    async def run(self, stop: asyncio.Event) -> None:
        while await self.read() or not stop.is_set():
            await asyncio.sleep(self.chance.random() * 0.02)
        while await self.read():
            pass


@pytest.mark.timeout(60 + 2 * SECONDS)
async def test_every_change_comes_once_and_rows_in_order(shop: Shop) -> None:
    await shop.insert(*range(ROWS))
    stop_writing, stop_reading = asyncio.Event(), asyncio.Event()
    start = await shop.log.position()
    readers = [Reader(shop, start, random.Random(number)) for number in range(3)]
    reading = [asyncio.create_task(reader.run(stop_reading)) for reader in readers]
    writing = [
        asyncio.create_task(write(await shop.connect(), seed, stop_writing)) for seed in range(12)
    ] + [
        asyncio.create_task(hold_open(await shop.connect(), row, stop_writing))
        for row in (ROWS, ROWS + 1)
    ]
    await asyncio.sleep(SECONDS)
    stop_writing.set()
    await asyncio.gather(*writing)
    stop_reading.set()
    await asyncio.gather(*reading)

    rows = await shop.sql.fetch(
        "select xid::text::bigint, (key ->> 'id')::int, (new_row ->> 'v')::int"
        " from rowsignal.change where pg_visible_in_snapshot(xid, pg_current_snapshot())"
        " offset $1",
        ROWS,
    )
    committed = sorted(tuple(row) for row in rows)
    assert len(committed) > 100
    final = dict(map(tuple, await shop.sql.fetch("select id, v from item")))
    for reader in readers:
        assert sorted(reader.seen) == committed, "each once"
        values = defaultdict(list)
        for _, key, value in reader.seen:
            values[key].append(value)
        for key, history in values.items():
            assert history == list(range(history[0], final[key] + 1)), "in the order of the row"


async def test_nothing_is_missing_that_pruning_did_not_say(shop: Shop) -> None:
    """Readers of a log that is being pruned hard get all changes, or a reset for what went."""
    await shop.insert(*range(ROWS))
    stop = asyncio.Event()
    position = await shop.log.position()
    writing = [asyncio.create_task(write(await shop.connect(), n, stop)) for n in range(4)]
    seen: dict[int, int] = {}
    resets = count = 0
    chance = random.Random(7)
    while not (resets > 3 and count > 30):
        await asyncio.sleep(chance.random() * 0.02)
        if chance.random() < 0.5:
            await prune(shop.engine, Retention(max_age=0.0), batch_size=20, pause=0.0)
        answer = await shop.log.read(position, limit=chance.choice([1, 10, 100]))
        position = answer.position or ""
        if isinstance(answer, Reset):
            resets += 1
            seen.clear()
            continue
        for change in answer.changes:
            assert change.key is not None
            assert change.row is not None
            value = change.row["v"]
            assert seen.get(change.key["id"], value - 1) == value - 1, "a gap without a word"
            seen[change.key["id"]] = value
            count += 1
    stop.set()
    await asyncio.gather(*writing)
    assert resets
    assert count
