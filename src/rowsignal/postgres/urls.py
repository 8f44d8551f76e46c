"""Conversion of the URLs of PostgreSQL's tools and of SQLAlchemy for asyncpg."""

from sqlalchemy.engine import URL, make_url

from rowsignal.orm.urls import async_url


def asyncpg_url(url: str | URL) -> URL:
    """Return the URL with which asyncpg reaches the database, whichever driver the URL names.

    >>> asyncpg_url("postgresql+psycopg://ann@db.example/shop?sslmode=require")
    postgresql+asyncpg://ann@db.example/shop?ssl=require

    Raises `ValueError` for other databases than PostgreSQL.
    """
    given = make_url(url)
    dialect = given.drivername.partition("+")[0]
    if dialect not in {"postgresql", "postgres"}:
        raise ValueError(f"rowsignal works with PostgreSQL, not {dialect}.")
    return async_url(given.set(drivername="postgresql"))


def text_of(url: str | URL) -> str:
    """Return the URL for asyncpg as text, with its password."""
    return asyncpg_url(url).render_as_string(hide_password=False)
