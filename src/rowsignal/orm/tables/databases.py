"""Creation and removal of databases."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy import URL, NullPool, make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from rowsignal.exceptions import DatabaseExistsError, DatabaseInUseError, NotFoundError
from rowsignal.identifiers import quote
from rowsignal.orm.sqlstates import (
    DUPLICATE_DATABASE,
    INVALID_CATALOG_NAME,
    OBJECT_IN_USE,
    UNIQUE_VIOLATION,
    sqlstate,
)
from rowsignal.orm.urls import async_url

# Two creations at once collide in the catalogue's unique index
DUPLICATE = frozenset({DUPLICATE_DATABASE, UNIQUE_VIOLATION})


async def create_database(
    db_name: str,
    *,
    server_url: str | URL,
    template: str | None = None,
    owner: str | None = None,
    if_not_exists: bool = False,
) -> None:
    """Create a database, under any name that PostgreSQL allows.

        await create_database("shop-test", server_url="postgresql+asyncpg://localhost/postgres")

    `server_url` leads to an existing database of the same server, by an asynchronous driver.
    Any number of callers may create the same database at once: one creates it, and for the others
    it exists already, which with `if_not_exists` is no error.

    Raises `DatabaseExistsError`; `DatabaseInUseError` if the template has connections;
    `NotFoundError` if there is no such template; `ValueError` for an impossible name. See the
    PostgreSQL manual, CREATE DATABASE and 23.3.
    """
    statement = f"CREATE DATABASE {quote(db_name)}"
    if owner is not None:
        statement += f" OWNER {quote(owner)}"
    if template is not None:
        statement += f" TEMPLATE {quote(template)}"
    try:
        await _administer(server_url, statement)
    except DBAPIError as error:
        state = sqlstate(error)
        if state in DUPLICATE and not if_not_exists:
            raise DatabaseExistsError(
                f"The database {db_name!r} exists already. Pass if_not_exists=True to keep it, "
                "or drop it first with drop_database."
            ) from error
        if state == OBJECT_IN_USE:
            raise _in_use(template or "template1", "be copied") from error
        if state == INVALID_CATALOG_NAME and template is not None:
            raise NotFoundError(f"There is no database {template!r} to copy.") from error
        if state not in DUPLICATE:
            raise


async def drop_database(
    db_name: str,
    *,
    server_url: str | URL,
    if_exists: bool = False,
    force: bool = False,
) -> None:
    """Drop a database; `force` ends its connections first.

    Raises `NotFoundError` if there is none (unless `if_exists`), `DatabaseInUseError` if it has
    connections, and `ValueError` for the database of `server_url` itself. See
    the PostgreSQL manual, DROP DATABASE.
    """
    if make_url(server_url).database == db_name:
        raise ValueError(
            f"{db_name!r} is the database that server_url leads to, which cannot drop itself: "
            "let server_url lead to another one, such as 'postgres'."
        )
    statement = f"DROP DATABASE {'IF EXISTS ' if if_exists else ''}{quote(db_name)}"
    try:
        await _administer(server_url, statement + (" WITH (FORCE)" if force else ""))
    except DBAPIError as error:
        state = sqlstate(error)
        if state == INVALID_CATALOG_NAME:
            raise NotFoundError(f"There is no database {db_name!r} to drop.") from error
        if state == OBJECT_IN_USE:
            raise _in_use(db_name, "be dropped", "or pass force=True") from error
        raise


async def _administer(server_url: str | URL, statement: str) -> None:
    async with _connect(server_url) as connection:
        # Not sent as it is: psycopg would take `%s` in a name for a parameter.
        await connection.execute(text(statement.replace(":", r"\:")))


@asynccontextmanager
async def _connect(server_url: str | URL) -> AsyncIterator[AsyncConnection]:
    # Neither statement is allowed inside a transaction
    engine = create_async_engine(
        async_url(server_url), isolation_level="AUTOCOMMIT", poolclass=NullPool
    )
    try:
        async with engine.connect() as connection:
            yield connection
    finally:
        await engine.dispose()


def _in_use(name: str, what: str, instead: str = "and try again") -> DatabaseInUseError:
    return DatabaseInUseError(
        f"The database {name!r} cannot {what} while it has connections: close them, {instead}."
    )
