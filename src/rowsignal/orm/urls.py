"""Conversion of database URLs of synchronous tools for async drivers."""

import logging
from types import MappingProxyType
from typing import Any
from urllib.parse import urlencode

from sqlalchemy.engine import URL, make_url

logger = logging.getLogger(__name__)

Query = dict[str, str | tuple[str, ...]]

ASYNC_DRIVERS = MappingProxyType(
    {
        "postgresql": "asyncpg",
        "sqlite": "aiosqlite",
        "mysql": "aiomysql",
        "mariadb": "aiomysql",
        "oracle": "oracledb",
        "mssql": "aioodbc",
    }
)
# psycopg (version 3) and oracledb are missing on purpose: SQLAlchemy drives both either way
SYNC_DRIVERS = frozenset(
    [
        "psycopg2",
        "psycopg2cffi",
        "pg8000",
        "pysqlite",
        "pysqlcipher",
        "mysqldb",
        "pymysql",
        "mysqlconnector",
        "cymysql",
        "mariadbconnector",
        "cx_oracle",
        "pyodbc",
        "pymssql",
    ]
)

IN_URL = frozenset({"user", "password", "dbname", "database"})
# asyncpg takes these from a DSN only; SQLAlchemy would hand them over as keyword arguments
IN_DSN = frozenset(
    [
        "sslmode",
        "sslcert",
        "sslkey",
        "sslrootcert",
        "sslcrl",
        "sslpassword",
        "sslnegotiation",
        "ssl_min_protocol_version",
        "ssl_max_protocol_version",
        "application_name",
        "options",
    ]
)
LIBPQ_ONLY = frozenset(
    [
        "connect_timeout",
        "keepalives",
        "keepalives_idle",
        "keepalives_interval",
        "keepalives_count",
        "tcp_user_timeout",
        "sslcompression",
        "sslsni",
        "gssencmode",
        "channel_binding",
        "fallback_application_name",
        "load_balance_hosts",
    ]
)
DEMANDS = frozenset({("gssencmode", "require"), ("channel_binding", "require")})


def revealed(url: Any) -> str | URL:
    """Return a URL with its password, which `str` of a secret or a SQLAlchemy URL masks."""
    if hasattr(url, "get_secret_value"):
        url = url.get_secret_value()
    return url if isinstance(url, URL) else str(url)


def async_url(url: str | URL) -> URL:
    """Return the URL with which an async engine reaches the same database.

    A driver that is already async stays; `postgres` is `postgresql`; libpq's parameters
    (PostgreSQL manual, 34.1.2) become what asyncpg understands. The password is kept, and
    shown only by `render_as_string(hide_password=False)`.

    >>> async_url("postgres://ann@db.example/shop?sslmode=require")
    postgresql+asyncpg://ann@db.example/shop?ssl=require

    Raises `ValueError` for a dialect without a known async driver, and for a parameter that asyncpg
    could only ignore.
    """
    given = make_url(url)
    dialect, _, driver = given.drivername.partition("+")
    dialect = "postgresql" if dialect == "postgres" else dialect
    if not driver or driver in SYNC_DRIVERS:
        driver = _async_driver(dialect)
    translated = given.set(drivername=f"{dialect}+{driver}")
    return _for_asyncpg(translated) if driver == "asyncpg" else translated


def _async_driver(dialect: str) -> str:
    try:
        return ASYNC_DRIVERS[dialect]
    except KeyError:
        known = ", ".join(ASYNC_DRIVERS)
        raise ValueError(
            f"No async driver is known for {dialect!r}, only for {known}:"
            f" name one in the URL, as in {dialect}+driver://..."
        ) from None


def _for_asyncpg(url: URL) -> URL:
    url = _credentials_in_place(url)
    query = dict(url.query)
    _drop_libpq_only(query)
    dsn = {name: str(query.pop(name)) for name in IN_DSN & query.keys()}
    # asyncpg takes the mode as its argument `ssl`, too; the others need a DSN.
    if dsn.keys() == {"sslmode"}:
        query["ssl"] = dsn["sslmode"]
    elif dsn:
        query["dsn"] = f"postgresql://?{urlencode(sorted(dsn.items()))}"
    return url.set(query=query)


def _credentials_in_place(url: URL) -> URL:
    """Move credentials from the query to the place where SQLAlchemy masks them."""
    query = url.query
    found = {name: str(query[name]) for name in IN_URL & query.keys()}
    rest = {name: value for name, value in query.items() if name not in found}
    return url.set(
        username=found.get("user", url.username),
        password=found.get("password", url.password),
        database=found.get("dbname", found.get("database", url.database)),
        query=rest,
    )


def _drop_libpq_only(query: Query) -> None:
    for name in sorted(LIBPQ_ONLY & query.keys()):
        value = query.pop(name)
        if (name, value) in DEMANDS:
            raise ValueError(
                f"The database URL demands {name}={value}, which asyncpg cannot promise:"
                " take it out of the URL, or name the driver: postgresql+psycopg://..."
            )
        logger.warning("%s in the database URL has no meaning for asyncpg: left out", name)
