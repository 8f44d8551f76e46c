"""A logged table to write to, and what the tests of the change log need around it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal import schema
from rowsignal.change_log import Batch, ChangeLog
from rowsignal.changes import Change, Reset

TABLES = """
create table item (id integer primary key, v integer not null);
create function rowsignal.capture_log_test() returns trigger language plpgsql as $$
begin
    if tg_op = 'TRUNCATE' then
        insert into rowsignal.change (relation, operation) values (tg_relid, 't');
    elsif tg_op = 'DELETE' then
        insert into rowsignal.change (relation, operation, key, old_row)
        values (tg_relid, 'd', jsonb_build_object('id', old.id), to_jsonb(old.*));
    elsif tg_op = 'INSERT' then
        insert into rowsignal.change (relation, operation, key, new_row)
        values (tg_relid, 'i', jsonb_build_object('id', new.id), to_jsonb(new.*));
    else
        insert into rowsignal.change (relation, operation, key, changed, old_row, new_row)
        values (tg_relid, 'u', jsonb_build_object('id', new.id), '{v}', to_jsonb(old.*),
                to_jsonb(new.*));
    end if;
    if not (pg_try_advisory_lock(1919907699, 1000) and pg_advisory_unlock(1919907699, 1000)) then
        perform pg_notify('rowsignal_log', '');
    end if;
    return null;
end $$;
"""
CAPTURE = """
create trigger capture after insert or update or delete on {table} for each row
    execute function rowsignal.capture_log_test('{table}', '1000', '{{}}', 'id');
create trigger capture_truncate after truncate on {table} for each statement
    execute function rowsignal.capture_log_test('{table}', '1000', '{{}}', 'id');
"""


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
        await self.sql.execute(CAPTURE.format(table=table))

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
        async with engine.begin() as own:
            await own.run_sync(schema.apply)
        await connection.execute(TABLES)
        await connection.execute(CAPTURE.format(table="item"))
        log = await stack.enter_async_context(ChangeLog(engine))
        yield Shop(engine, log, connection, stack)


def ids(batch: Batch | Reset | Sequence[Change]) -> list[int | None]:
    """Return the keys of changes, in order."""
    assert not isinstance(batch, Reset), batch
    changes = batch.changes if isinstance(batch, Batch) else batch
    return [change.key and change.key["id"] for change in changes]
