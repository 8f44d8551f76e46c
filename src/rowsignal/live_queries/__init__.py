"""Live queries: the result of a SELECT, now and whenever it changes."""

from rowsignal.live_queries.queries import LiveQuery, live_query

__all__ = ["LiveQuery", "live_query"]
