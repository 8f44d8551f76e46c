"""Streams of row changes over HTTP, as server-sent events."""

from rowsignal.sse.access.grants import Grant, TableGrant
from rowsignal.sse.delivery.outlet import Outlet
from rowsignal.sse.frames import FrameParser
from rowsignal.sse.http.router import create_sse_router
from rowsignal.sse.limits import Limits

__all__ = ["FrameParser", "Grant", "Limits", "Outlet", "TableGrant", "create_sse_router"]
