"""What people read has no words of drivers, and tables by their plain names."""

import pytest

from rowsignal.service.readers import _plain
from rowsignal.service.status import plain_reason, plain_text

UNREACHABLE = "PostgreSQL cannot be reached"


@pytest.mark.parametrize(
    "text",
    [
        "(sqlalchemy.dialects.postgresql.asyncpg.InterfaceError) <class 'asyncpg.x'>: closed",
        "ConnectionRefusedError: [Errno 111] Connect call failed ('127.0.0.1', 5432)",
        "Multiple exceptions: [Errno 111] Connect call failed ('::1', 5432, 0, 0)",
        "<Connection object at 0x7f9136e8bd90>",
        "TimeoutError",
        "TimeoutError: ",
    ],
)
def test_texts_of_drivers_become_a_sentence(text: str):
    assert plain_text(text) == UNREACHABLE


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "TimeoutError: PostgreSQL did not answer within 3 s.",
            "PostgreSQL did not answer within 3 s.",
        ),
        ("public.PrintError has no triggers.", "public.PrintError has no triggers."),
        ("The lock table is 60% full; writes fail.", "The lock table is 60% full; writes fail."),
        (
            "Notifications do not arrive: CannotConnectNowError: the system is starting up.",
            "Notifications do not arrive: the system is starting up.",
        ),
        (
            "Notifications do not arrive: ConnectionDoesNotExistError.",
            "Notifications do not arrive: PostgreSQL cannot be reached.",
        ),
    ],
)
def test_what_people_can_use_is_kept(text: str, shown: str):
    assert plain_text(text) == shown


def test_no_reason_stays_none():
    assert plain_reason(None) is None


@pytest.mark.parametrize(
    ("quoted", "name"),
    [
        ('"public"."tasks"', "public.tasks"),
        ('"odd schema"."say ""hi"""', 'odd schema.say "hi'),
    ],
)
def test_quoted_names_become_plain_ones(quoted: str, name: str):
    assert _plain(quoted) == name
