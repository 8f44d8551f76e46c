"""The endpoints of one outlet."""

import time
from collections.abc import Iterable
from http import HTTPStatus

from fastapi import Response

from rowsignal.changes import Operation
from rowsignal.exceptions import AccessDeniedError, NotPermittedError, UnsupportedError
from rowsignal.sse.access.grants import Grant
from rowsignal.sse.delivery.outlet import Outlet, StreamRequest
from rowsignal.sse.delivery.response import EventStream
from rowsignal.sse.frames import compact
from rowsignal.sse.http.entity_tags import KnownTags
from rowsignal.sse.http.long_poll import Answer, LongPoll, RowRequest
from rowsignal.sse.http.parameters import StreamOptions, WaitOptions
from rowsignal.sse.http.requests import Ask, find, key_of, views_of

NO_WAITING = (
    "This gateway has no database to wait for a row in: read a stream of its table, or start the"
    " gateway with a database."
)
EXPIRED = "The token has expired."


class Endpoints:
    """Streams and long polls of the tables that an outlet offers."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.poll = None if outlet.engine is None else LongPoll(outlet.engine)

    async def stream(
        self, names: Iterable[str], grant: Grant, ask: Ask, options: StreamOptions
    ) -> EventStream:
        """Return a stream of the named tables."""
        outlet = self.outlet
        _time_left(grant)
        tables = {it.name: it for it in (find(name, outlet.exposures, grant) for name in names)}
        request = StreamRequest(
            views=views_of(list(tables.values()), grant, ask),
            principal=grant.principal,
            beginning=options.beginning,
            conflate=options.conflate,
            expires_at=grant.expires_at,
        )
        return await outlet.open(request)

    async def wait(self, name: str, pk: str, grant: Grant, options: WaitOptions) -> Response:
        """Return a row once it has changed, or 204 after the timeout or at the token's end."""
        if self.poll is None:
            raise UnsupportedError(NO_WAITING)
        asked = self._row_request(name, pk, grant, options.ask)
        timeout = min(options.timeout, _time_left(grant))
        known = None if options.if_none_match is None else KnownTags(options.if_none_match)
        self.outlet.fanout.acquire(grant.principal)
        try:
            found = await self.poll.wait(asked, timeout, known)
        finally:
            self.outlet.fanout.release(grant.principal)
            # A wait that was ended by its token tells so, not that nothing has changed.
            _time_left(grant)
        return _row_answer(found)

    def _row_request(self, name: str, pk: str, grant: Grant, ask: Ask) -> RowRequest:
        exposure = find(name, self.outlet.exposures, grant)
        (view,) = views_of([exposure], grant, ask)
        asked = RowRequest(exposure, view, key_of(pk, exposure, view.columns))
        if not asked.tells(Operation.UPDATE) and not asked.tells(Operation.DELETE):
            raise NotPermittedError(
                f"A long poll tells updates and deletes, and of {exposure.name} you may hear"
                " neither, or have not asked for them."
            )
        return asked


def _time_left(grant: Grant) -> float:
    """Return how many seconds a grant is still valid; raise if it has expired."""
    left = float("inf") if grant.expires_at is None else grant.expires_at - time.time()
    if left <= 0:
        raise AccessDeniedError(EXPIRED)
    return left


def _row_answer(found: Answer | None) -> Response:
    if found is None:
        return Response(status_code=HTTPStatus.NO_CONTENT)
    body, tag = found
    headers = {"ETag": tag, "Cache-Control": "no-store"}
    return Response(compact(body), media_type="application/json", headers=headers)
