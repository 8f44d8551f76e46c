"""PostgreSQL for pytest: a server per run, a database per worker and per test.

Name it in the `conftest.py` next to the project's `pyproject.toml`:

    pytest_plugins = ["rowsignal.pytest_plugin"]

It does not use pytest's entry point `pytest11`, which would import SQLAlchemy and offer these
fixtures in every project whose environment has rowsignal.

The fixtures `postgres_url`, `database_metadata` and `prepare_database` are meant to be overridden:
see their docstrings, or `pytest --fixtures`. Functions for further fixtures are
`worker_database_url`, `create_worker_database`, `create_db_session`, `create_async_client`.
"""

from rowsignal.pytest_plugin.clients import create_async_client
from rowsignal.pytest_plugin.fixtures import (
    cleanup_tables,
    database_metadata,
    database_template,
    database_url,
    postgres_url,
    prepare_database,
    pytest_configure_node,
    pytest_unconfigure,
    scratch_databases,
    worker_database,
)
from rowsignal.pytest_plugin.sessions import create_db_session
from rowsignal.pytest_plugin.worker_databases import create_worker_database, worker_database_url

__all__ = [
    "cleanup_tables",
    "create_async_client",
    "create_db_session",
    "create_worker_database",
    "database_metadata",
    "database_template",
    "database_url",
    "postgres_url",
    "prepare_database",
    "pytest_configure_node",
    "pytest_unconfigure",
    "scratch_databases",
    "worker_database",
    "worker_database_url",
]
