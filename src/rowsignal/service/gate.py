"""The gate: where a request's token is looked for, and what it then may do."""

from typing import Any

from fastapi import Request

from rowsignal.exceptions import AccessDeniedError
from rowsignal.service.auth import Authenticator, grant_of
from rowsignal.service.settings import Settings
from rowsignal.service.tickets import TicketOffice
from rowsignal.sse import Grant
from rowsignal.sse.access.grants import grant_everything

BEARER = "bearer "


class Gate:
    """Finds out who asks: by a ticket in the query, a header, or a cookie, in this order."""

    def __init__(self, settings: Settings) -> None:
        self._is_open = not settings.keys
        self._cookie = settings.token_cookie
        self._origins = frozenset(settings.cors_origins)
        self._tickets = TicketOffice(settings.ticket_dir, settings.ticket_lifetime)
        self._authenticator = Authenticator(
            settings.keys,
            audience=settings.token_audience,
            issuer=settings.token_issuer,
            leeway=settings.token_leeway,
        )

    @property
    def ticket_lifetime(self) -> float:
        """How long a ticket is good, in seconds."""
        return self._tickets.lifetime

    async def authorize(self, request: Request) -> Grant:
        """Return what the caller may see; raise `AccessDeniedError` when that is nothing."""
        if self._is_open:
            return await grant_everything()
        ticket = request.query_params.get("ticket")
        return grant_of(self._tickets.redeem(ticket) if ticket else self._claims(request))

    async def admit_to_status(self, request: Request) -> None:
        """Raise `AccessDeniedError` unless the caller may see the service's status."""
        if not (await self.authorize(request)).status:
            raise AccessDeniedError('The token does not say "status": true.')

    async def issue_ticket(self, request: Request) -> str:
        """Return a ticket for whoever has a token."""
        if self._is_open:
            return self._tickets.issue({})
        claims = self._claims(request)
        grant_of(claims)  # raises for what would be of no use
        return self._tickets.issue(claims)

    def _claims(self, request: Request) -> dict[str, Any]:
        header = request.headers.get("authorization", "")
        if header.lower().startswith(BEARER):
            return self._authenticator.claims(header[len(BEARER) :].strip())
        cookie = request.cookies.get(self._cookie)
        if cookie is None:
            raise AccessDeniedError("A token is needed: send it as Authorization: Bearer ...")
        self._refuse_strangers(request)
        return self._authenticator.claims(cookie)

    def _refuse_strangers(self, request: Request) -> None:
        """Refuse a cookie that a browser sends along for somebody else's page."""
        origin = request.headers.get("origin")
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        if origin is not None and origin != own and origin not in self._origins:
            raise AccessDeniedError(f"Pages of {origin} may not use this cookie.")
