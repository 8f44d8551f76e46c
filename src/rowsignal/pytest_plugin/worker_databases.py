"""A database for each process of a test run, named after it."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.engine import make_url

from rowsignal.identifiers import shorten
from rowsignal.orm import create_database, drop_database
from rowsignal.orm.urls import async_url

MAINTENANCE_DATABASE = "postgres"  # exists on nearly every server (PostgreSQL manual, 23.1)


def worker_database_url(
    database_url: str, default_test_db: str = "test_db", *, prefix: str | None = None
) -> str:
    """Return the URL of this process's own database, on the same server.

    Its name is the name of the database in `database_url`, or `prefix` if given, with a suffix: the
    name of the pytest-xdist worker, such as `gw0`, or `default_test_db` without xdist.

    Raises `ValueError` if the result is the database of `database_url` itself.
    """
    url = make_url(database_url)
    suffix = os.environ.get("PYTEST_XDIST_WORKER", default_test_db)
    name = shorten("_".join(part for part in (prefix or url.database, suffix) if part))
    if name == url.database:
        raise ValueError(
            f"Tests would run in, and drop, the database {name!r} itself: "
            "choose another default_test_db or prefix."
        )
    return url.set(database=name).render_as_string(hide_password=False)


@asynccontextmanager
async def create_worker_database(
    database_url: str,
    default_test_db: str = "test_db",
    *,
    prefix: str | None = None,
    server_url: str | None = None,
) -> AsyncIterator[str]:
    """Create the database of `worker_database_url` for the block, and yield its URL.

        @pytest.fixture(scope="session")
        async def worker_url():
            async with create_worker_database("postgresql+asyncpg://localhost/shop") as url:
                yield url

    A database of this name left by a killed run is dropped first. The database is dropped after the
    block, also after an error, and its open connections are ended. So two runs at once on one
    server need different prefixes.

    `server_url` names another database of the server to connect to (default: `postgres`). Raises
    `ValueError` if it names the worker's database.
    """
    url = worker_database_url(database_url, default_test_db, prefix=prefix)
    name = make_url(url).database or ""
    server = async_url(server_url or make_url(database_url).set(database=MAINTENANCE_DATABASE))
    await drop_database(name, server_url=server, if_exists=True, force=True)
    await create_database(name, server_url=server)
    try:
        yield url
    finally:
        await drop_database(name, server_url=server, if_exists=True, force=True)
