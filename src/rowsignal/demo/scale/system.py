"""Everything that runs in the demonstration: PostgreSQL, NATS, two relays, two gateways."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Literal, get_args

from rowsignal.demo.scale.parts import (
    PAUSE,
    START_TIMEOUT,
    GatewayPart,
    NatsPart,
    Part,
    PartError,
    ProcessGroup,
    RelayPart,
    State,
)
from rowsignal.embedded import EmbeddedPostgres
from rowsignal.embedded.ports import free_port

Kind = Literal["relay", "gateway", "nats", "postgres"]
KINDS: tuple[Kind, ...] = get_args(Kind)
USUAL_PORT = 8080


class Database:
    """The PostgreSQL of the demonstration, as one of its parts."""

    kind = "postgres"
    name = "PostgreSQL"

    def __init__(self, server: EmbeddedPostgres) -> None:
        self.state: State = "up"
        self.kills = 0
        self._server = server

    @property
    def note(self) -> str:
        """Its version."""
        return self._server.version

    async def crash(self) -> None:
        """Stop as in a crash, and start again."""
        self.kills += 1
        self.state = "down"
        await asyncio.to_thread(self._server.restart, "immediate")
        self.state = "up"


class System:
    """The parts, and how they are broken."""

    def __init__(
        self,
        server: EmbeddedPostgres,
        group: ProcessGroup,
        nats_program: Path,
        port: int | None,
    ) -> None:
        self.database = Database(server)
        self.nats = NatsPart(group, nats_program)
        url = self.nats.url
        self.relays = [RelayPart(f"relay {it}", group, url, server.url) for it in (1, 2)]
        ports = [free_port(USUAL_PORT if port is None else port), free_port()]
        self.gateways = [
            GatewayPart(f"gateway {number}", group, nats=url, database_url=server.url, port=port)
            for number, port in enumerate(ports, start=1)
        ]
        self._random = Random(3)  # noqa: S311 -- which part is next is no secret

    @property
    def parts(self) -> Sequence[Part | Database]:
        """All parts, as data flows."""
        return (self.database, *self.relays, self.nats, *self.gateways)

    @property
    def kills(self) -> dict[str, int]:
        """The number of kills of each kind of part."""
        return {kind: sum(it.kills for it in self.parts if it.kind == kind) for kind in KINDS}

    async def start(self) -> None:
        """Start all but PostgreSQL; one relay is at work then, and describes the tables."""
        await self.nats.start()
        await self.relays[0].start()
        await self.until_relaying()
        await self.relays[1].start()
        for gateway in self.gateways:
            await gateway.start()

    async def end(self) -> None:
        """End all but PostgreSQL."""
        for part in (*self.gateways, *self.relays, self.nats):
            await part.end()

    async def crash(self, kind: Kind) -> None:
        """Kill a part of a kind, and start it again; return when its work is done again."""
        if kind == "postgres":
            await self.database.crash()
        elif kind == "gateway":
            await _replace(self._random.choice(self.gateways))
        elif kind == "nats":
            await _replace(self.nats)
            await self.until_relaying()
        else:
            await self._crash_relay()

    async def until_relaying(self) -> None:
        """Wait until a relay is at work."""
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not any(it.is_active for it in self.relays):  # noqa: ASYNC110 -- their log
                    await asyncio.sleep(PAUSE)
        except TimeoutError:
            raise PartError(f"No relay was at work within {START_TIMEOUT:g} s.") from None

    async def _crash_relay(self) -> None:
        """Kill the relay that is at work; the other one takes over, and this one stands by."""
        active = next((it for it in self.relays if it.is_active), self.relays[0])
        await active.kill()
        await self.until_relaying()
        await active.start()


async def _replace(part: Part) -> None:
    await part.kill()
    await part.start()


@asynccontextmanager
async def running(system: System) -> AsyncIterator[None]:
    """Run the parts during the block."""
    try:
        await system.start()
        yield
    finally:
        await system.end()
