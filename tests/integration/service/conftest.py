import logging

import pytest


@pytest.fixture(autouse=True)
def own_logging():
    """Logging as it was before the application configured it."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = before
