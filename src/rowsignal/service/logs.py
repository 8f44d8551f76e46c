"""Log lines: structured, on standard error, without tokens, queries, keys or values of rows."""

import logging
import re
import sys
import time
import traceback
from typing import Any
from urllib.parse import quote

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowsignal.exceptions import RowSignalError
from rowsignal.sse.http.problems import described

SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.format_exc_info,
]
KEY_IN_PATH = re.compile(r"(/wait/[^/]*/).*", re.DOTALL)
QUIET = ("/health/", "/metrics")


def configure_logs(level: str, form: str) -> None:
    """Send all log records, also those of libraries, through one formatter."""
    is_text = form == "text" or (form == "auto" and sys.stderr.isatty())
    renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if is_text else None
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=SHARED,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            renderer or structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    handler.addFilter(Discretion())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    structlog.configure(
        processors=[*SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class Discretion(logging.Filter):
    """Removes the messages of errors from log lines, since they may quote values.

    The kind of an error, PostgreSQL's code and the traceback remain.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Remove the messages of errors from a record; never drop it."""
        if isinstance(record.args, tuple):
            record.args = tuple(_discreet(it) for it in record.args)
        if isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
            record.exc_text = _raised(record.exc_info[1])
            record.exc_info = None
            if isinstance(record.msg, dict):
                record.msg["exception"] = record.exc_text
            else:
                record.msg = f"{record.getMessage().rstrip()}\n{record.exc_text}"
                record.args = ()
        return True


def _discreet(value: object) -> object:
    is_quoting = isinstance(value, BaseException) and not isinstance(value, RowSignalError)
    return described(value) if is_quoting and isinstance(value, BaseException) else value


def _raised(error: BaseException) -> str:
    """Return the frames and kinds of an error and of its causes."""
    parts = []
    found: BaseException | None = error
    while found is not None:
        frames = "".join(traceback.format_tb(found.__traceback__))
        parts.append(f"{frames}{described(found)}")
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return "\nwhich followed from:\n".join(parts)


class RequestLog:
    """Logs each request at its end: the path, never the query or the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.log = structlog.get_logger("rowsignal.http")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 0

        async def watch(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self.app(scope, receive, watch)
        finally:
            self._write(scope, status, time.monotonic() - began)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        write = self.log.debug if scope["path"].startswith(QUIET) else self.log.info
        path = quote(KEY_IN_PATH.sub(r"\1...", scope["path"]), safe="/.-_~:@")
        facts = {"method": scope["method"], "path": path, "status": status}
        write("request", **facts, seconds=round(seconds, 4))
