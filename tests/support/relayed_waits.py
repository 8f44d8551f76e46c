"""An application whose waits take their hints from a relay, under a role of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.listener import Listener, Timings
from rowsignal.triggers import install_triggers
from support.hint_listener import connected
from support.shop import Base, Line, Order

ROWS = 200
QUICK = Timings(delays=lambda: iter([0.02] * 10_000), idle_timeout=0.2, canary=0.5)
LISTENS = (
    "select count(*) from pg_stat_activity where usename = $1"
    " and (query ilike 'listen %' or application_name = 'rowsignal listener')"
)


@dataclass
class Application:
    """An engine of a role that is nothing but the application's, and a writer beside it."""

    engine: AsyncEngine
    writer: asyncpg.Connection
    role: str

    async def connections(self) -> int:
        """Count the connections of the application."""
        text = "select count(*) from pg_stat_activity where usename = $1"
        return int(await self.writer.fetchval(text, self.role))

    async def listening(self) -> int:
        """Count the connections of the application that LISTEN: a listener names itself so."""
        return int(await self.writer.fetchval(LISTENS, self.role))

    async def pay(self, *ids: int) -> None:
        """Commit a change of some orders."""
        text = "update orders set total = total + 1 where id = any($1::int[])"
        await self.writer.execute(text, list(ids))


@asynccontextmanager
async def application(owner: AsyncEngine) -> AsyncIterator[Application]:
    """Make a shop with logged orders and lines without triggers, and the role of an application."""
    async with owner.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Order), [{"id": n} for n in range(1, ROWS + 1)])
        await connection.execute(insert(Line).values(order_id=1, number=1))
    await install_triggers(owner, [Order], log=True, row_values=True)
    role = f"app_{owner.url.database}"
    async with connected(owner) as writer:
        await writer.execute(f"create role {role} login")
        await writer.execute(f"grant select on all tables in schema public to {role}")
        engine = create_async_engine(owner.url.set(username=role))
        try:
            yield Application(engine, writer, role)
        finally:
            await engine.dispose()
            await writer.execute(f"drop owned by {role}; drop role {role}")


@asynccontextmanager
async def hinted_by(nats: str, engine: AsyncEngine, **options: object) -> AsyncIterator[Listener]:
    """Take hints from NATS for the length of a block."""
    async with Listener(engine, listen_url=nats, **{"timings": QUICK} | options) as listener:
        yield listener
