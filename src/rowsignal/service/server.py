"""The server of the service: uvicorn, with one process or several."""

import errno
import gc
import importlib
import socket
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import AddressError
from rowsignal.listener.origins import RelayOrigin
from rowsignal.nats.subjects import is_nats
from rowsignal.service.catalog import offered_tables
from rowsignal.service.logs import configure_logs
from rowsignal.service.settings import Settings
from rowsignal.service.sharing import shared_limits
from rowsignal.sse.access.tickets import TicketOffice

APP = "rowsignal.service.app:create_app"
GATEWAY = "rowsignal.service.gateway:create_gateway"
WORKERS = {
    APP: "rowsignal.service.server:service_worker",
    GATEWAY: "rowsignal.service.server:gateway_worker",
}
BACKLOG = 2048  # connections that wait to be accepted, as uvicorn has it
REASONS = {
    errno.EADDRINUSE: "another program listens there; choose another port, or end that program",
    errno.EACCES: "this user may not: ports below 1024 need a right of their own",
    errno.EADDRNOTAVAIL: "this machine has no such address",
}

log = structlog.get_logger("rowsignal.service")


async def check(engine: AsyncEngine, settings: Settings) -> None:
    """Raise the errors that prevent a start, before the first log line."""
    await offered_tables(engine, settings.tables, key_secret=b"")
    TicketOffice(settings.ticket_dir)
    if settings.shared_limits is not None:
        shared_limits(settings.shared_limits.get_secret_value(), "")
    if settings.listen_url is not None and is_nats(settings.listen_url.get_secret_value()):
        RelayOrigin(settings.listen_url.get_secret_value())
    bind(settings).close()


def bind(settings: Settings) -> socket.socket:
    """Return a bound socket; raise `AddressError` if the address cannot be bound."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((settings.host, settings.port))
    except OSError as error:
        found.close()
        reason = REASONS.get(error.errno or 0, error.strerror or str(error))
        place = f"{settings.host}:{settings.port}"
        raise AddressError(f"The service cannot listen at {place}: {reason}.") from error
    found.set_inheritable(True)
    return found


def serve(settings: Settings, *, factory: str = APP) -> None:
    """Serve until SIGTERM or SIGINT; open streams get a `bye` and time to end.

    uvicorn's access log is off, because its lines would contain queries and with them tickets.
    Raises `AddressError` if the address cannot be bound.
    """
    configure_logs(settings.log_level, settings.log_format)
    if settings.workers == 1:
        _serve_alone(settings, factory)
        return
    with bind(settings) as bound:  # to fail before the first log line: uvicorn binds it again
        _log_start(settings, bound)
    settings.export()
    worker = WORKERS[factory]
    uvicorn.run(worker, **_options(settings), factory=True, workers=settings.workers)


def _serve_alone(settings: Settings, factory: str) -> None:
    with bind(settings) as listener:
        # Before the log names the address: who connects at once waits until the start is over.
        listener.listen(BACKLOG)
        _log_start(settings, listener)
        config = uvicorn.Config(_create(factory, settings), **_options(settings))
        uvicorn.Server(config).run(sockets=[listener])


def _log_start(settings: Settings, bound: socket.socket) -> None:
    log.info("starting", page=page_address(settings, bound.getsockname()[1]))


def service_worker() -> FastAPI:
    """Create the service in a worker process; its settings come from the environment."""
    return _create(APP, None)


def gateway_worker() -> FastAPI:
    """Create a gateway in a worker process; its settings come from the environment."""
    return _create(GATEWAY, None)


def _create(factory: str, settings: Settings | None) -> FastAPI:
    """Create an application that owns its process.

    What is loaded by now stays. Left to the garbage collector, each full collection would visit
    it, and stop all streams for some hundred milliseconds (Python's documentation, gc.freeze).
    """
    module, _, name = factory.partition(":")
    app: FastAPI = getattr(importlib.import_module(module), name)(settings)
    gc.collect()
    gc.freeze()
    return app


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "timeout_graceful_shutdown": max(1, round(settings.shutdown_grace)),
    }


def page_address(settings: Settings, port: int) -> str:
    """Return the address of the page for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 -- compared
    bracketed = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{bracketed}:{port}{settings.root_path}/"
