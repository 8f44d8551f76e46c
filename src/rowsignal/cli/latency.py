"""The latency of waits after a commit on the user's database, by notification and by polling."""

import asyncio
import random
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from sqlalchemy import Column, Integer, MetaData, Table, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import registry
from sqlalchemy.schema import CreateSchema, DropSchema

from rowsignal.hooks import Hooks, Mode
from rowsignal.listener import Listener
from rowsignal.postgres import schema
from rowsignal.triggers import install_triggers, trigger_status
from rowsignal.waiting import wait_for_row_change

WATCHED, KEPT_ARMED = 1, 2
PACE = 0.03  # slower than the rate at which a table counts as busy
WAIT_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds from sending COMMIT to the return of the wait."""

    p50: float
    p99: float
    slowest: float

    @classmethod
    def of(cls, seconds: list[float]) -> "Latency":
        """Summarise measurements."""
        ordered = sorted(seconds)
        return cls(median(ordered), ordered[int(len(ordered) * 0.99)], ordered[-1])


@dataclass(frozen=True, slots=True)
class LatencyReport:
    """The latency of both ways, measured alternately; `mode` is the table's mode at the end."""

    rounds: int
    polled_rounds: int
    interval: float
    mode: Mode
    notified: Latency
    polled: Latency

    def to_dict(self) -> dict[str, Any]:
        """Return the report for JSON."""
        return {**asdict(self), "sooner": self.polled.p50 / self.notified.p50}


class Modes(Hooks):
    """Records the mode of one table."""

    def __init__(self, table: str) -> None:
        self.mode: Mode = "starting"
        self.is_armed = asyncio.Event()
        self._table = table

    def mode_changed(self, *, table: str, mode: Mode) -> None:
        """Record the mode."""
        if table == self._table:
            self.mode = mode
            if mode == "armed":
                self.is_armed.set()


async def measure_latency(
    engine: AsyncEngine,
    *,
    interval: float = 0.5,
    rounds: int = 200,
    polled_rounds: int = 10,
    note: Callable[[int], None] = lambda _: None,
) -> LatencyReport:
    """Measure in a new schema, which is dropped at the end; call `note` after each round.

    If the schema `rowsignal` is missing, it is created and dropped as well. Raises the error that
    prevents notifications.
    """
    notified: list[float] = []
    polled: list[float] = []
    async with _tables(engine) as (armed, plain):
        modes = Modes(armed.__table__.fullname)
        await install_triggers(engine, armed)
        async with Listener(engine, hooks=modes), _armed(engine, armed, modes):
            for number in range(rounds):
                notified.append(await _round(engine, armed, interval, PACE))
                is_due = number * polled_rounds // rounds == len(polled)
                polled += [await _polled_round(engine, plain, interval)] if is_due else []
                note(number + 1)
            mode = modes.mode
    return LatencyReport(
        rounds, polled_rounds, interval, mode, Latency.of(notified), Latency.of(polled)
    )


async def _polled_round(engine: AsyncEngine, model: type[Any], interval: float) -> float:
    pause = random.uniform(0, interval)  # noqa: S311 -- anywhere between two looks
    return await _round(engine, model, interval, pause)


async def _round(engine: AsyncEngine, model: type[Any], interval: float, pause: float) -> float:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        seen = await session.get_one(model, WATCHED)  # a session holds only weak references
        await session.commit()
        wait = wait_for_row_change(session, model, WATCHED, interval=interval, timeout=WAIT_TIMEOUT)
        waiting = asyncio.create_task(wait)
        await asyncio.sleep(pause)
        async with AsyncSession(engine) as writer:
            (await writer.get_one(model, WATCHED)).number += 1
            await writer.flush()
            began = time.perf_counter()
            await writer.commit()
        if await waiting is not seen:
            raise RuntimeError("the wait has returned another object than its session held")
        return time.perf_counter() - began


@asynccontextmanager
async def _armed(engine: AsyncEngine, model: type[Any], modes: Modes) -> AsyncIterator[None]:
    """Keep a wait open during the block, which begins when its table is armed."""
    waiting = asyncio.create_task(wait_for_row_change(engine, model, KEPT_ARMED))
    try:
        await asyncio.wait_for(modes.is_armed.wait(), WAIT_TIMEOUT)
        yield
    finally:
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@asynccontextmanager
async def _tables(engine: AsyncEngine) -> AsyncIterator[tuple[type[Any], type[Any]]]:
    """Create two tables with two rows each, and drop them afterwards."""
    place = f"rowsignal_bench_{secrets.token_hex(4)}"
    metadata = MetaData(schema=place)
    models = (_model(metadata, "armed"), _model(metadata, "plain"))
    before = await schema.schema_status(engine)
    try:
        async with engine.begin() as connection:
            await connection.execute(CreateSchema(place))
            await connection.run_sync(metadata.create_all)
        async with AsyncSession(engine) as session, session.begin():
            for model in models:
                session.add_all([model(id=key, number=0) for key in (WATCHED, KEPT_ARMED)])
        yield models
    finally:
        await asyncio.shield(_clean_up(engine, place, is_ours=not before.version))


async def _clean_up(engine: AsyncEngine, place: str, *, is_ours: bool) -> None:
    async with engine.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '10s'"))
        await connection.execute(DropSchema(place, cascade=True, if_exists=True))
        # another process may have installed triggers in the meantime
        if is_ours and not await trigger_status(connection):
            await connection.run_sync(schema.migrate, 0)


def _model(metadata: MetaData, name: str) -> type[Any]:
    table = Table(
        name,
        metadata,
        Column("id", Integer, primary_key=True, autoincrement=False),
        Column("number", Integer, nullable=False),
    )
    model: type[Any] = type(name.title(), (), {"__table__": table})
    registry().map_imperatively(model, table)
    return model
