"""The demonstration: a shop's changes, by relays and gateways, while parts of them are killed."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.demo.scale.followers import Follower, Rows
from rowsignal.demo.scale.keys import pressed_keys
from rowsignal.demo.scale.ledger import Ledger, RowId, table_names
from rowsignal.demo.scale.nats import find_nats_server
from rowsignal.demo.scale.parts import process_group
from rowsignal.demo.scale.report import ScaleReport
from rowsignal.demo.scale.system import Kind, System, running
from rowsignal.demo.scale.verdict import Verdict, verdict_on
from rowsignal.demo.shop import create_shop, run_shop
from rowsignal.demo.shop_tables import Base
from rowsignal.demo.story import beside, interruption, opened_engine
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.triggers import install_triggers

SCRIPT: tuple[Kind, ...] = ("relay", "gateway", "nats", "postgres")
BETWEEN = 40  # changes that each reader receives before the next part is killed
KEYS: dict[str, Kind] = {"r": "relay", "g": "gateway", "n": "nats", "p": "postgres"}
TOLD = {
    "relay": "kill -9 of the relay at work: the other one takes over",
    "gateway": "kill -9 of a gateway: its readers go to the other one",
    "nats": "kill -9 of NATS, and a new start",
    "postgres": "a crash of PostgreSQL (immediate shutdown), and a new start",
}
FRAME = 0.25
EXAMINE = 1.0  # seconds between two comparisons while changes are written
LONGEST_STAGE = 90.0
SETTLE_TIMEOUT = 45.0


@dataclass(frozen=True, slots=True)
class ScaleView:
    """A snapshot of the system for the screen."""

    system: System
    followers: Sequence[Follower]
    written: int
    verdict: Verdict


class ScaleStage(Protocol):
    """Callback interface of a screen."""

    def tell(self, sentence: str) -> None:
        """Report a step."""

    def refresh(self, view: ScaleView) -> None:
        """Show the figures; called several times per second."""


Act = Callable[["Scene"], Awaitable[None]]


class ScaleStory:
    """One run of the demonstration."""

    def __init__(
        self, stage: ScaleStage, *, rate: float, readers: int, port: int | None = None
    ) -> None:
        self._stage = stage
        self._rate = rate
        self._readers = readers
        self._port = port
        self._verdict = Verdict()
        self._written = 0

    async def run(self, act: Act) -> ScaleReport:
        """Start everything, let `act` break it, and compare what came with what was written.

        Raises `FileNotFoundError` without a nats-server, `PartError` for a part that fails.
        """
        program, nats_version = find_nats_server()
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(EmbeddedPostgres())
            began = time.monotonic()
            group = await stack.enter_async_context(process_group())
            engine = await stack.enter_async_context(opened_engine(server.url))
            ledger = await _furnish(engine)
            system = System(server, group, program, self._port)
            self._stage.tell(f"started PostgreSQL {server.version} with a shop, and a log of it")
            await stack.enter_async_context(running(system))
            self._stage.tell(f"started nats-server {nats_version}, two relays and two gateways")
            pages = " and ".join(it.note for it in system.gateways)
            self._stage.tell(f"the page with live tables is at {pages}")
            followers = [
                Follower(number, system.gateways, table_names()) for number in range(self._readers)
            ]
            scene = Scene(self._stage, system, followers)
            stack.enter_context(ledger.recording())
            async with beside(*(it.run() for it in followers), self._showing(scene, ledger)):
                await scene.until_level()
                self._stage.tell(f"{len(followers)} readers hop from gateway to gateway")
                await self._write(engine, scene, act)
                await self._settle(scene, ledger, engine)
            return ScaleReport(
                postgres_version=server.version,
                nats_version=nats_version,
                seconds=round(time.monotonic() - began, 1),
                written=self._written,
                readers=len(followers),
                hops=sum(it.hops for it in followers),
                resets=sum(it.resets for it in followers),
                kills=system.kills,
                verdict=self._verdict,
            )

    async def _write(self, engine: AsyncEngine, scene: "Scene", act: Act) -> None:
        """Write changes until the act is over."""
        async with asyncio.TaskGroup() as group:
            group.create_task(run_shop(engine, rate=self._rate, stop=scene.is_over))
            await act(scene)
            scene.is_over.set()

    async def _settle(self, scene: "Scene", ledger: Ledger, engine: AsyncEngine) -> None:
        """Wait until the readers have all there is, or are not going to have it."""
        self._stage.tell("nothing more is written; the readers receive the rest")
        entries, stored = await ledger.read(), await _stored(engine)
        self._written = len(entries)
        until = time.monotonic() + SETTLE_TIMEOUT
        while time.monotonic() < until:
            accounts = [it.account() for it in scene.followers]
            self._verdict = verdict_on(accounts, entries, stored)
            if not self._verdict.faults:
                return
            await asyncio.sleep(FRAME)

    async def _showing(self, scene: "Scene", ledger: Ledger) -> NoReturn:
        due = 0.0
        while True:
            if time.monotonic() >= due and not scene.is_over.is_set():
                await self._compare(scene, ledger)
                due = time.monotonic() + EXAMINE
            view = ScaleView(scene.system, scene.followers, self._written, self._verdict)
            self._stage.refresh(view)
            await asyncio.sleep(FRAME)

    async def _compare(self, scene: "Scene", ledger: Ledger) -> None:
        """Compare what was received so far; PostgreSQL may be away just now."""
        accounts = [it.account() for it in scene.followers]  # all of it is in the ledger by then
        try:
            entries = await ledger.read()
        except (SQLAlchemyError, OSError):
            return
        self._written, self._verdict = len(entries), verdict_on(accounts, entries)


class Scene:
    """The system, readers and screen that the acts of the story use."""

    def __init__(self, stage: ScaleStage, system: System, followers: Sequence[Follower]) -> None:
        self.is_over = asyncio.Event()
        self.system = system
        self.followers = followers
        self._stage = stage

    @property
    def page(self) -> str:
        """The address of the first gateway's page."""
        return self.system.gateways[0].note

    async def until_level(self) -> None:
        """Wait until every reader has the current rows."""
        async with asyncio.timeout(LONGEST_STAGE):
            for it in self.followers:
                await it.is_level.wait()

    async def until_received(self, count: int) -> None:
        """Wait until every reader has received some more changes."""
        wanted = [(it, len(it.seen) + count) for it in self.followers]
        async with asyncio.timeout(LONGEST_STAGE):
            for follower, number in wanted:
                while len(follower.seen) < number:
                    follower.moved.clear()
                    await follower.moved.wait()

    async def crash(self, kind: Kind) -> None:
        """Kill a part, and start it again."""
        self._stage.tell(TOLD[kind])
        await self.system.crash(kind)


async def fixed_script(scene: Scene) -> None:
    """Kill each kind of part once, and let changes pass between."""
    for kind in SCRIPT:
        await scene.until_received(BETWEEN)
        await scene.crash(kind)
    await scene.until_received(BETWEEN)


async def on_request(scene: Scene) -> None:
    """Kill what is asked for by keys, until `q`, Ctrl-C or SIGTERM."""
    async with asyncio.TaskGroup() as group:
        with interruption() as is_over:
            working: dict[Kind, asyncio.Task[None]] = {}

            def press(key: str) -> None:
                kind = KEYS.get(key.lower())
                if key.lower() == "q":
                    is_over.set()
                elif kind is not None and (kind not in working or working[kind].done()):
                    working[kind] = group.create_task(scene.crash(kind))

            with pressed_keys(press):
                await is_over.wait()


async def _furnish(engine: AsyncEngine) -> Ledger:
    await create_shop(engine)
    await install_triggers(engine, Base, log=True, row_values=True)
    ledger = Ledger(engine)
    await ledger.create()
    return ledger


async def _stored(engine: AsyncEngine) -> Rows:
    """Return the rows of the shop as streams show them: numbers with a point are text."""
    found: dict[RowId, dict[str, Any]] = {}
    async with engine.connect() as connection:
        for table in Base.metadata.tables.values():
            alias = table.alias("it")
            row = sa.cast(sa.func.row_to_json(alias.table_valued()), sa.Text)
            for text in await connection.scalars(sa.select(row).select_from(alias)):
                values = json.loads(text, parse_float=str)
                found[f"{table.schema}.{table.name}", values["id"]] = values
    return found
