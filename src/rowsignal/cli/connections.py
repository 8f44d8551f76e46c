"""Engines for commands: from a URL to an engine with a tested connection."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.cli.errors import CommandError, reason_of
from rowsignal.postgres.connections import suit_pooler
from rowsignal.postgres.urls import asyncpg_url

CONNECT_TIMEOUT = 10.0
REFUSALS = (OSError, SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError)


def parsed(url: str | None) -> URL:
    """Return the URL for asyncpg; raise an error that explains a malformed one."""
    if not url:
        raise CommandError(
            "No database was named: pass --url postgresql://user@host/name, or set"
            " ROWSIGNAL_DATABASE_URL or DATABASE_URL."
        )
    try:
        return asyncpg_url(url)
    except (ArgumentError, ValueError) as error:
        # SQLAlchemy's own sentence would show the URL, and with it the password
        reason = str(error).rstrip(".") if type(error) is ValueError else "it is no URL"
        raise CommandError(
            f"The database URL cannot be used ({reason}): write postgresql://user@host/name."
        ) from None


def place(url: URL) -> str:
    """Return the host and database of a URL, without secrets."""
    host = url.host or url.query.get("host") or "localhost"
    port = f":{url.port}" if url.port else ""
    return f"{url.database or 'postgres'} at {host}{port}"


@asynccontextmanager
async def connected(url: str | None) -> AsyncIterator[AsyncEngine]:
    """Yield an engine that suits the server or the pooler; dispose of it afterwards."""
    where = parsed(url)
    engine = create_async_engine(where, hide_parameters=True)
    try:
        await _try(engine, where)
        yield engine
    finally:
        await engine.dispose()


async def _try(engine: AsyncEngine, where: URL) -> None:
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            await suit_pooler(engine)
    except TimeoutError:
        raise CommandError(
            f"No answer from {place(where)} within {CONNECT_TIMEOUT:g} s: is the address right, and"
            " may this machine reach it?"
        ) from None
    except REFUSALS as error:
        raise CommandError(
            f"Cannot connect to {place(where)}: {reason_of(error)}. Check --url,"
            " ROWSIGNAL_DATABASE_URL or DATABASE_URL."
        ) from error
