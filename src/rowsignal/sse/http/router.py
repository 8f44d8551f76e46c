"""`create_sse_router`: the endpoints, for anybody's FastAPI application."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Path,
    Query,
    Request,
    Response,
)
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.change_log.positions import decode
from rowsignal.exceptions import RowSignalError, UnavailableError
from rowsignal.hooks import Hooks
from rowsignal.listener import OUTAGES
from rowsignal.sse.access.exposures import Offered, Source, exposures_of
from rowsignal.sse.access.grants import Grant, grant_everything
from rowsignal.sse.delivery.joining import Beginning
from rowsignal.sse.delivery.outlet import Order, Outlet
from rowsignal.sse.delivery.response import EventStream
from rowsignal.sse.frames import compact
from rowsignal.sse.http.long_poll import LongPoll
from rowsignal.sse.http.openapi import STREAM, WAIT
from rowsignal.sse.http.problems import Problem, problem_of
from rowsignal.sse.http.requests import Ask, find, key_of, views_of
from rowsignal.sse.limits import Limits

logger = logging.getLogger("rowsignal.sse")

Authorize = Callable[..., Grant | Awaitable[Grant]]


class ProblemRoute(APIRoute):
    """A route whose errors leave as `application/problem+json`, whatever the application does."""

    def get_route_handler(self) -> Callable[[Request], Any]:
        """Return the handler, wrapped."""
        handle = super().get_route_handler()

        async def handle_problems(request: Request) -> Response:
            try:
                return await handle(request)
            except RowSignalError as error:
                return problem_of(error)
            except HTTPException as error:
                return Problem(HTTPStatus(error.status_code), str(error.detail), error.headers)
            except OUTAGES as error:
                logger.warning("a request could not be served: %s", error)
                return problem_of(UnavailableError("The database does not answer just now."))
            except RequestValidationError as error:
                return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, _sentence(error))

        return handle_problems


def _sentence(error: RequestValidationError) -> str:
    return "; ".join(f"{it['loc'][-1]}: {it['msg']}" for it in error.errors()) + "."


Texts = list[str] | None


async def asked(
    pk: Annotated[Texts, Query(description="Rows, by primary key.")] = None,
    operations: Annotated[Texts, Query(description="insert, update, delete, truncate")] = None,
    columns: Annotated[
        Texts, Query(description="Updates that changed one of these columns.")
    ] = None,
    where: Annotated[Texts, Query(description="Conditions: `status.eq.paid`.")] = None,
) -> Ask:
    """Collect the filters of a request."""
    return Ask(pk=pk or (), operations=operations or (), columns=columns or (), where=where or ())


@dataclass(frozen=True, slots=True)
class StreamOptions:
    """How a stream begins and behaves."""

    beginning: Beginning
    conflate: bool


async def stream_options(
    *,
    snapshot: Annotated[bool, Query(description="The current rows first.")] = False,
    after: Annotated[str | None, Query(description="Resume after this position.")] = None,
    conflate: Annotated[
        bool, Query(description="Only a row's newest event, when there is no time for all.")
    ] = False,
    last_event_id: Annotated[str | None, Header(description="Resume: wins over `after`.")] = None,
) -> StreamOptions:
    """Collect how a stream is to begin; raise `PositionError` for a position that is none."""
    position = last_event_id or after or None
    if position is not None:
        decode(position)
    return StreamOptions(Beginning(snapshot=snapshot, after=position), conflate)


class Endpoints:
    """What answers requests, for one outlet."""

    def __init__(self, outlet: Outlet) -> None:
        self.outlet = outlet
        self.poll = LongPoll(outlet.engine)

    async def stream(
        self, names: Iterable[str], grant: Grant, ask: Ask, options: StreamOptions
    ) -> EventStream:
        """Answer with a stream of the named tables."""
        outlet = self.outlet
        tables = {it.name: it for it in (find(name, outlet.exposures, grant) for name in names)}
        order = Order(
            views=views_of(list(tables.values()), grant, ask),
            principal=grant.principal,
            beginning=options.beginning,
            conflate=options.conflate,
            expires_at=grant.expires_at,
        )
        return await outlet.open(order)

    async def wait(
        self, name: str, pk: str, grant: Grant, ask: Ask, *, timeout: float, known: str | None
    ) -> Response:
        """Answer when a row has changed, or time is up."""
        exposure = find(name, self.outlet.exposures, grant)
        (view,) = views_of([exposure], grant, ask)
        key = key_of(pk, exposure)
        self.outlet.fanout.admit(grant.principal)
        try:
            outcome = await self.poll.wait(exposure, view, key, timeout, known)
        finally:
            self.outlet.fanout.dismiss(grant.principal)
        if outcome is None:
            return Response(status_code=204)
        body, tag = outcome
        return Response(
            compact(body),
            media_type="application/json",
            headers={"ETag": tag, "Cache-Control": "no-store"},
        )


def create_sse_router(
    engine: AsyncEngine,
    tables: Mapping[Any, Offered] | Iterable[Source],
    *,
    authorize: Authorize = grant_everything,
    limits: Limits | None = None,
    hooks: Hooks | None = None,
) -> APIRouter:
    """Make a router that streams row changes of some tables to browsers and other readers.

    `tables` maps mapped classes or `Table`s to what may leave of their rows: a pydantic schema
    that makes them, a list of column names, or None for all columns. `authorize` is a FastAPI
    dependency that returns the `Grant` of whoever asks, or raises `HTTPException`.

        app.include_router(
            create_sse_router(engine, {Order: OrderOut, Item: ["id", "name"]}, authorize=grant_of),
            prefix="/v1",
        )

    The router has `GET /changes/{table}`, `GET /changes?table=a&table=b` and
    `GET /wait/{table}/{pk}`. Install triggers first; with `log=True` streams can be resumed.
    FastAPI finishes dependencies after the answer: an `authorize` that takes a database session
    as a dependency would hold it as long as the stream, so let it open and close its own.

    Raises `ValueError` for tables without a primary key and columns that are not there.
    """
    outlet = Outlet(engine, exposures_of(tables), limits, hooks)
    return router_of(outlet, authorize)


def router_of(outlet: Outlet, authorize: Authorize) -> APIRouter:
    """Return the endpoints of an outlet; the outlet is closed with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await outlet.aclose()

    endpoints = Endpoints(outlet)
    router = APIRouter(route_class=ProblemRoute, lifespan=lifespan, tags=["changes"])
    granted = Depends(authorize)

    @router.get("/changes/{table}", responses=STREAM, response_class=Response)
    async def stream_table(
        table: Annotated[str, Path(description="`schema.table`, or `table` where it is unique.")],
        grant: Annotated[Grant, granted],
        ask: Annotated[Ask, Depends(asked)],
        options: Annotated[StreamOptions, Depends(stream_options)],
    ) -> Response:
        """Stream the changes of one table."""
        return await endpoints.stream([table], grant, ask, options)

    @router.get("/changes", responses=STREAM, response_class=Response)
    async def stream_tables(
        grant: Annotated[Grant, granted],
        ask: Annotated[Ask, Depends(asked)],
        options: Annotated[StreamOptions, Depends(stream_options)],
        table: Annotated[Texts, Query(description="Several tables.")] = None,
    ) -> Response:
        """Stream the changes of several tables, in the order of the log."""
        return await endpoints.stream(table or (), grant, ask, options)

    @router.get("/wait/{table}/{pk:path}", responses=WAIT, response_class=Response)
    async def wait_for_row(
        table: str,
        pk: str,
        grant: Annotated[Grant, granted],
        columns: Annotated[Texts, Query(description="Changes of these columns only.")] = None,
        timeout: Annotated[float, Query(gt=0, le=60, description="Seconds.")] = 25.0,
        if_none_match: Annotated[str | None, Header()] = None,
    ) -> Response:
        """Wait until a row is not (any more) the one whose ETag is known."""
        ask = Ask(columns=columns or ())
        return await endpoints.wait(table, pk, grant, ask, timeout=timeout, known=if_none_match)

    return router
