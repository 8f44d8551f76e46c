"""A guard for a service without tokens: only names of this machine lead to it."""

from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from rowsignal.sse.http.problems import Problem

LOCAL = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})


class LocalHosts:
    """Refuses requests for other host names.

    A page from anywhere can give its own name the address 127.0.0.1 and then counts as the same
    origin for a browser (DNS rebinding); its requests still carry that name.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, if it was meant for this machine."""
        if scope["type"] == "http" and _host(scope) not in LOCAL:
            detail = "This service has no tokens, so it answers to localhost only."
            await Problem(HTTPStatus.MISDIRECTED_REQUEST, detail)(scope, receive, send)
            return
        await self.app(scope, receive, send)


def _host(scope: Scope) -> bytes:
    host: bytes = dict(scope["headers"]).get(b"host", b"").lower()
    name, _, port = host.rpartition(b":")
    return name if port.isdigit() else host
