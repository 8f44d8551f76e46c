"""PostgreSQL for the suite: one server a run, one database a test."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.embedded import EmbeddedPostgres

# A busy machine is no fault of what is tested: no example is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

pytest_plugins = ["pytester", "rowsignal.pytest_plugin"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `tests/unit/test_words.py`."""
    parser.addoption(
        "--list-docstrings",
        action="store_true",
        help="print all public docstrings, for reading (with tests/unit/test_words.py)",
    )


@pytest.fixture(autouse=True)
def logging_of_its_own() -> Iterator[None]:
    """Undo what a service of a test has configured: later tests would miss log lines."""
    yield
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    for handler in tuple(root.handlers):
        if isinstance(handler.formatter, structlog.stdlib.ProcessorFormatter):
            root.removeHandler(handler)


@pytest.fixture(scope="session")
def server() -> Iterator[EmbeddedPostgres]:
    """Provide the throw-away PostgreSQL server of this test run."""
    with EmbeddedPostgres() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_url(server: EmbeddedPostgres) -> str:
    """Let the plugin make the tests' databases on `server`, which tests can also restart."""
    return server.url


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Provide an engine on a fresh, empty database."""
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()
