"""The gate: finds the token of a request and returns its grant."""

from fastapi import Request

from rowsignal.exceptions import AccessDeniedError
from rowsignal.service.auth import Authenticator, grant_of
from rowsignal.service.settings import Settings
from rowsignal.sse import Grant
from rowsignal.sse.access.grants import grant_everything

BEARER = "bearer "
OWN_PAGES = {None, "same-origin", "none"}  # Sec-Fetch-Site; None: not a browser, or an old one


class Gate:
    """Finds the grant of a request, by the token in the header or else in a cookie."""

    def __init__(self, settings: Settings) -> None:
        self._is_open = not settings.keys
        self._cookie = settings.token_cookie
        self._origins = frozenset(settings.cors_origins)
        self._authenticator = Authenticator(
            settings.keys,
            audience=settings.token_audience,
            issuer=settings.token_issuer,
            leeway=settings.token_leeway,
        )

    async def authorize(self, request: Request) -> Grant:
        """Return the grant of a request; raise `AccessDeniedError` without a valid token."""
        if self._is_open:
            return await grant_everything()
        return grant_of(self._authenticator.claims(self._token(request)))

    async def grant_of_scraper(self, request: Request) -> Grant:
        """Return the grant of a scraper of metrics; without a token it may see no table."""
        has_token = "authorization" in request.headers or self._cookie in request.cookies
        return await self.authorize(request) if has_token or self._is_open else Grant()

    def _token(self, request: Request) -> str:
        header = request.headers.get("authorization", "")
        if header.lower().startswith(BEARER):
            return header[len(BEARER) :].strip()
        cookie = request.cookies.get(self._cookie)
        if cookie is None:
            raise AccessDeniedError("A token is needed: send it as Authorization: Bearer ...")
        self._refuse_strangers(request)
        return cookie

    def _refuse_strangers(self, request: Request) -> None:
        """Refuse a cookie that a browser sends for a page of another origin."""
        origin = request.headers.get("origin")
        if origin in self._origins:
            return
        own = f"{request.url.scheme}://{request.headers.get('host', '')}"
        site = request.headers.get("sec-fetch-site")
        if (origin is not None and origin != own) or site not in OWN_PAGES:
            raise AccessDeniedError(
                f"Pages of {origin or 'other origins'} may not use this cookie."
            )
