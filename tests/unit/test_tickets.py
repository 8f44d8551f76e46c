"""Tickets: taken once, for the grant they stand for, until the grant ends."""

import time

import pytest

from rowsignal.changes import Operation
from rowsignal.exceptions import AccessDeniedError, ReaderLimitError
from rowsignal.sse import Grant, TableGrant, TicketOffice
from rowsignal.sse.access.tickets import MAX_OPEN

GRANT = Grant(
    tables={
        "public.orders": TableGrant(
            columns=frozenset({"id"}),
            operations=frozenset({Operation.UPDATE}),
            where=("customer.eq.7",),
        ),
        "*": TableGrant(),
    },
    principal="ann",
    expires_at=time.time() + 3600,
)


@pytest.fixture(params=["memory", "folder"])
def offices(request, tmp_path):
    """Two processes that share what they know, as far as they can."""
    if request.param == "memory":
        office = TicketOffice()
        return office, office
    return TicketOffice(tmp_path / "tickets"), TicketOffice(tmp_path / "tickets")


def test_a_ticket_brings_the_grant_back_once(offices):
    one, other = offices
    ticket = one.issue(GRANT)
    assert other.redeem(ticket) == GRANT
    for office in offices:
        with pytest.raises(AccessDeniedError, match="has been used"):
            office.redeem(ticket)


@pytest.mark.parametrize("text", ["", "x", "../../etc/passwd", "0" * 16 + "-" + "A" * 43])
def test_what_was_never_issued_is_refused(offices, text):
    with pytest.raises(AccessDeniedError):
        offices[0].redeem(text)


def test_a_ticket_ends_with_its_grant_and_after_its_lifetime(offices, tmp_path):
    ended = Grant(principal="ann", expires_at=time.time() - 0.001)
    with pytest.raises(AccessDeniedError):
        offices[1].redeem(offices[0].issue(ended))
    short = TicketOffice(tmp_path / "short", lifetime=-1.0)
    with pytest.raises(AccessDeniedError):
        short.redeem(short.issue(GRANT))


def test_unused_tickets_are_limited_for_each_principal_and_forgotten_in_time(tmp_path):
    for folder in (None, tmp_path / "tickets"):
        office = TicketOffice(folder, lifetime=30.0)
        for _ in range(MAX_OPEN):
            office.issue(GRANT)
        with pytest.raises(ReaderLimitError) as caught:
            office.issue(GRANT)
        assert caught.value.is_own
        office.issue(Grant(principal="ben"))
        office._store.sweep(time.time() + 1)
        office.issue(GRANT)


def test_a_ticket_says_nothing_of_its_grant(offices):
    ticket = offices[0].issue(GRANT)
    assert "ann" not in ticket
    assert "orders" not in ticket
    assert len({offices[0].issue(GRANT) for _ in range(5)}) == 5
