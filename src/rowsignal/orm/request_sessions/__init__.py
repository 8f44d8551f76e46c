"""A session for every request, and for blocks of code: the middleware and `db`."""

from rowsignal.orm.request_sessions.middleware import (
    SQLAlchemyMiddleware,
    create_middleware_and_session_proxy,
    db,
)
from rowsignal.orm.request_sessions.proxy import SessionBlock, SessionProxy

__all__ = [
    "SQLAlchemyMiddleware",
    "SessionBlock",
    "SessionProxy",
    "create_middleware_and_session_proxy",
    "db",
]
