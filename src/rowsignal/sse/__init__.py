"""Streams of row changes over HTTP, as server-sent events."""

import rowsignal.exceptions

try:
    from rowsignal.sse.access.grants import Grant, TableGrant
    from rowsignal.sse.access.tickets import TicketOffice
    from rowsignal.sse.delivery.outlet import Outlet
    from rowsignal.sse.frames import FrameParser
    from rowsignal.sse.http.router import create_sse_router
    from rowsignal.sse.limits import Limits
except ModuleNotFoundError as error:
    raise rowsignal.exceptions.missing_extra("rowsignal.sse", "sse", error) from error

__all__ = [
    "FrameParser",
    "Grant",
    "Limits",
    "Outlet",
    "TableGrant",
    "TicketOffice",
    "create_sse_router",
]
