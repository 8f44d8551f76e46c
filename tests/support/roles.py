"""Roles that attack a database, and the schema `rowsignal` that they attack."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import asyncpg
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.payload import LOCK_CLASS, LOG_BUCKET
from rowsignal.triggers import install_triggers

INSTALLERS = ("superuser", "ordinary owner")
numbers = count()


@dataclass
class Ground:
    """A database with roles: `admin` (superuser), the installer, an attacker, a bystander.

    The attacker owns schema `mallory`, and in it a table `seen`, into which its code writes the
    name of the role that runs it.
    """

    admin: AsyncEngine
    installer: AsyncEngine
    installer_role: str
    attacker_role: str
    bystander_role: str
    sql: asyncpg.Connection
    attacker: asyncpg.Connection
    _stack: AsyncExitStack = field(repr=False)

    async def connect(self, role: str) -> asyncpg.Connection:
        """Connect as a role; the connection is closed at the end of the test."""
        return await _connect(self._stack, self.admin.url.set(username=role))

    def engine(self, role: str, *, url: URL | None = None, **options: Any) -> AsyncEngine:
        """Return an engine that connects as a role; it is disposed of at the end of the test."""
        engine = create_async_engine((url or self.admin.url).set(username=role), **options)
        self._stack.push_async_callback(engine.dispose)
        return engine

    async def role(self, name: str, attributes: str = "login") -> str:
        """Create one more role, and return its name, which no other test has.

        It stays on the throw-away server: what it owns goes with the test's database.
        """
        unique = f"{name}_{next(numbers)}"
        await self.sql.execute(f"create role {unique} {attributes}")
        return unique

    async def install(self, *tables: str, **settings: Any) -> None:
        """Install triggers as the installer."""
        await install_triggers(self.installer, list(tables), **settings)

    async def wait_for_hints(self) -> None:
        """Hold every listener's lock, so that triggers notify."""
        listener = await self.connect(self.bystander_role)
        for bucket in (*range(128), LOG_BUCKET):
            await listener.execute(f"select pg_advisory_lock_shared({LOCK_CLASS}, {bucket})")

    async def seen(self) -> set[str]:
        """Return the roles, besides the attacker, that have run the attacker's code; forget them.

        A sequence tells of calls whose transaction was rolled back.
        """
        rows = await self.sql.fetch("select distinct role::text from mallory.seen")
        found = {row["role"] for row in rows} - {self.attacker_role}
        if await self.sql.fetchval("select is_called from mallory.escapes"):
            found.add("a role that rolled back")
        await self.sql.execute("truncate mallory.seen; alter sequence mallory.escapes restart")
        return found


async def _connect(stack: AsyncExitStack, url: URL) -> asyncpg.Connection:
    plain = url.set(drivername="postgresql").render_as_string(hide_password=False)
    connection = await asyncpg.connect(plain)
    stack.push_async_callback(connection.close, timeout=5)
    return connection


@asynccontextmanager
async def open_ground(engine: AsyncEngine, installer: str) -> AsyncIterator[Ground]:
    """Make the roles in an empty database whose superuser `engine` connects as."""
    async with AsyncExitStack() as stack:
        sql = await _connect(stack, engine.url)
        ground = Ground(engine, engine, "postgres", "", "", sql, sql, stack)
        ground.installer_role = await ground.role("keeper")
        ground.attacker_role = await ground.role("mallory")
        ground.bystander_role = await ground.role("bystander")
        database = await sql.fetchval("select quote_ident(current_database())")
        await sql.execute(f"""
            grant create on database {database} to {ground.installer_role};
            create schema mallory authorization {ground.attacker_role};
            grant usage on schema mallory to public;
            create table mallory.seen (role name);
            create sequence mallory.escapes;
            grant insert on mallory.seen to public;
            grant usage on sequence mallory.escapes to public;
            create schema tenant;
            grant usage on schema tenant to public;
        """)
        if installer == "superuser":
            ground.installer_role = await sql.fetchval("select current_user")
        else:
            ground.installer = ground.engine(ground.installer_role)
        ground.attacker = await ground.connect(ground.attacker_role)
        await ground.attacker.execute(f"""
            alter default privileges in schema mallory grant trigger, select on tables
                to {ground.installer_role}
        """)
        yield ground


TRAP = """
    create function mallory.trap() returns text language plpgsql as $$
    begin
        if current_user <> (select pg_get_userbyid(nspowner) from pg_namespace
                            where nspname = 'mallory') then
            perform nextval('mallory.escapes');
        end if;
        insert into mallory.seen values (current_user);
        return null;
    end $$;
"""
