"""Streams of row changes over HTTP, as server-sent events."""

from rowsignal.sse.frames import FrameParser
from rowsignal.sse.grants import Grant, TableGrant
from rowsignal.sse.limits import Limits
from rowsignal.sse.outlet import Outlet
from rowsignal.sse.router import create_sse_router

__all__ = ["FrameParser", "Grant", "Limits", "Outlet", "TableGrant", "create_sse_router"]
