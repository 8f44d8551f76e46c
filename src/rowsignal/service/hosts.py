"""Middleware of all requests: response headers, and the protection of a service without tokens."""

from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rowsignal.sse.http.problems import NOSNIFF, Problem

LOCAL = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})


class NoSniff:
    """Sets `X-Content-Type-Options: nosniff` on every response, including errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).setdefault(*NOSNIFF)
            await send(message)

        await self.app(scope, receive, send_on if scope["type"] == "http" else send)


class LocalHosts:
    """Refuses requests for host names other than this machine's.

    A foreign page can resolve its own name to 127.0.0.1, so that a browser treats the service as
    the same origin (DNS rebinding); its requests still carry that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request, if its host name is this machine's."""
        if scope["type"] == "http" and _host(scope) not in LOCAL:
            detail = "This service has no tokens, so it answers to localhost only."
            await Problem(HTTPStatus.MISDIRECTED_REQUEST, detail)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _host(scope: Scope) -> bytes:
    host: bytes = dict(scope["headers"]).get(b"host", b"").lower()
    name, _, port = host.rpartition(b":")
    return name if port.isdigit() else host
