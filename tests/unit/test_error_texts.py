"""What went wrong is told in words: no class name, no statement, no empty sentence."""

import asyncpg
import pytest
from sqlalchemy.exc import DBAPIError

from rowsignal.cli.errors import explain
from rowsignal.postgres.errors import describe, message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (TimeoutError(), "there was no answer in time"),
        (ConnectionResetError(), "the connection was lost"),
        (ConnectionResetError(104, "Connection reset by peer"), None),
        (asyncpg.PostgresError("the system is starting up"), "the system is starting up"),
        (asyncpg.InterfaceError("first line\nsecond line"), "first line"),
        (DBAPIError("select secret", (), TimeoutError()), "there was no answer in time"),
    ],
    ids=repr,
)
def test_every_error_has_a_text(error: Exception, text: str | None) -> None:
    assert message(error) == (text or str(error))
    assert "secret" not in describe(error)


def test_an_error_without_a_text_is_described_by_class_and_words() -> None:
    assert describe(TimeoutError()) == "TimeoutError: there was no answer in time"
    assert describe(KeyError()) == "KeyError"


def test_a_command_that_got_no_answer_says_so() -> None:
    assert explain(TimeoutError())[0] == "there was no answer in time."
