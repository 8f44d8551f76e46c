"""The shared limits and tickets of service or gateway processes, by their settings."""

from rowsignal.exceptions import missing_extra
from rowsignal.service.settings import Settings
from rowsignal.sse.access.tickets import SharedTicketOffice, TicketOffice
from rowsignal.sse.sharing import SharedLimits

Tickets = TicketOffice | SharedTicketOffice


def shared_limits(nats: str, database: str) -> SharedLimits:
    """Return the limits in NATS, for the processes of one database."""
    try:
        from rowsignal.nats.shared_limits import JetStreamLimits  # noqa: PLC0415 -- an extra
    except ModuleNotFoundError as error:
        raise missing_extra("ROWSIGNAL_SHARED_LIMITS", "nats", error) from error
    return JetStreamLimits(nats, database)


def ticket_office(settings: Settings, shared: SharedLimits | None) -> Tickets:
    """Return the tickets of all hosts, or of this one."""
    lifetime = settings.ticket_lifetime
    local = TicketOffice(settings.ticket_dir, lifetime=lifetime)
    if shared is None:
        return local
    given = settings.token_secret  # which all hosts have; else the secret is of this host
    secret = local.secret if given is None else given.get_secret_value().encode()
    return SharedTicketOffice(shared.tickets, secret, lifetime=lifetime)
