"""A logged table to write to, and what the tests of the change log need around it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log import Batch, ChangeLog
from rowsignal.changes import Change, Reset
from rowsignal.triggers import install_triggers


@dataclass
class Shop:
    """A database with a logged table `item(id, v)`."""

    engine: AsyncEngine
    log: ChangeLog
    sql: asyncpg.Connection
    _stack: AsyncExitStack = field(repr=False)

    async def connect(self) -> asyncpg.Connection:
        """Open one more connection."""
        connection = await connect(self.engine)
        self._stack.push_async_callback(connection.close, timeout=2)
        return connection

    async def capture(self, table: str) -> None:
        """Log the changes of one more table that has a column `id`."""
        await install_triggers(self.engine, table, log=True, row_values=True)

    async def insert(self, *ids: int) -> None:
        """Insert items in one transaction."""
        await self.sql.execute("insert into item select unnest($1::int[]), 0", list(ids))

    async def read(self, after: str, **options: object) -> Batch:
        """Read the log; fail on a reset."""
        batch = await self.log.read(after, **options)
        assert isinstance(batch, Batch), batch
        return batch


async def connect(engine: AsyncEngine) -> asyncpg.Connection:
    """Open a plain connection to an engine's database."""
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    return await asyncpg.connect(url)


@asynccontextmanager
async def open_shop(engine: AsyncEngine) -> AsyncIterator[Shop]:
    """Make the logged table in an empty database."""
    async with AsyncExitStack() as stack:
        connection = await connect(engine)
        stack.push_async_callback(connection.close, timeout=2)
        await connection.execute("create table item (id integer primary key, v integer not null)")
        log = await stack.enter_async_context(ChangeLog(engine))
        shop = Shop(engine, log, connection, stack)
        await shop.capture("public.item")
        yield shop


def ids(batch: Batch | Reset | Sequence[Change]) -> list[int | None]:
    """Return the keys of changes, in order."""
    assert not isinstance(batch, Reset), batch
    changes = batch.changes if isinstance(batch, Batch) else batch
    return [change.key and change.key["id"] for change in changes]
