"""Errors of commands: one sentence with the way out, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError

from rowsignal.exceptions import MissingExtraError, RowSignalError, missing_extra
from rowsignal.postgres.errors import message, sqlstate

FAILED, NOT_UNDERSTOOD = 1, 2


PRIVILEGE = "42501"


class CommandError(Exception):
    """A command failed; `code` is its exit code."""

    def __init__(self, sentence: str, code: int = NOT_UNDERSTOOD) -> None:
        super().__init__(sentence)
        self.code = code


def explain(error: BaseException) -> tuple[str, int]:
    """Return a sentence for people, and the exit code."""
    if isinstance(error, BaseExceptionGroup):
        return explain(error.exceptions[0])
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, DBAPIError) and sqlstate(error) == PRIVILEGE:
        sentence = (
            f"PostgreSQL says: {reason_of(error)}. The owner of the tables and of the schema"
            " rowsignal gives this role its rights: `rowsignal grant ROLE`."
        )
        return sentence, FAILED
    if isinstance(error, DBAPIError):
        return f"PostgreSQL says: {reason_of(error)}.", FAILED
    if isinstance(error, RowSignalError):
        return str(error), FAILED
    if isinstance(error, OSError):
        return f"{reason_of(error)}.", FAILED
    if isinstance(error, ImportError):
        return f"{error}; pip install 'rowsignal[all]' brings every optional part.", FAILED
    if isinstance(error, ValueError | TypeError):
        return str(error), NOT_UNDERSTOOD
    kind = type(error).__name__
    return f"this should not happen: {kind}: {error}; --traceback shows where.", FAILED


def reason_of(error: BaseException) -> str:
    """Return the message of the server or the network, to be put into a sentence."""
    return message(error).rstrip(".")


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Turn a missing package into an error with the command that installs it."""
    try:
        yield
    except MissingExtraError as error:
        raise CommandError(str(error), FAILED) from error
    except ModuleNotFoundError as error:
        raise CommandError(str(missing_extra(what, extra, error)), FAILED) from error
