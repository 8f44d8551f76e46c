"""`create_sse_router`: the endpoints, for any FastAPI application."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Scope

from rowsignal.hooks import Hooks
from rowsignal.sse.access.exposures import Offered, Source, exposures_of
from rowsignal.sse.access.grants import Grant, grant_everything
from rowsignal.sse.access.row_keys import PROCESS_SECRET
from rowsignal.sse.access.tickets import TicketOffice
from rowsignal.sse.delivery.outlet import Outlet
from rowsignal.sse.http.endpoints import Endpoints
from rowsignal.sse.http.openapi import STREAM, TICKET, WAIT
from rowsignal.sse.http.parameters import (
    StreamOptions,
    Texts,
    WaitOptions,
    asked,
    stream_options,
    wait_options,
)
from rowsignal.sse.http.problems import ProblemRoute
from rowsignal.sse.http.requests import Ask
from rowsignal.sse.http.shutdown import end_in_time, on_stop_signal
from rowsignal.sse.limits import Limits
from rowsignal.streams.change_source import ChangeSource, PostgresSource

Authorize = Callable[..., Grant | Awaitable[Grant]]


class TicketRoute(ProblemRoute):
    """A route for requests with a ticket, which replaces the application's `authorize`."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match the path of requests with a ticket in the query."""
        query = QueryParams(scope.get("query_string", b""))
        return super().matches(scope) if "ticket" in query else (Match.NONE, {})


def create_sse_router(
    engine: AsyncEngine | None = None,
    tables: Mapping[Any, Offered] | Iterable[Source] = (),
    *,
    source: ChangeSource | None = None,
    authorize: Authorize = grant_everything,
    limits: Limits | None = None,
    hooks: Hooks | None = None,
    tickets: TicketOffice | None = None,
    key_secret: bytes = PROCESS_SECRET,
) -> APIRouter:
    """Create a router that streams row changes of some tables to browsers and other readers.

    `tables` maps mapped classes or `Table`s to the exposed part of their rows: a pydantic schema, a
    list of column names, or None for all columns. `authorize` is a FastAPI dependency that returns
    the `Grant` of the request's sender, or raises `HTTPException`.

        app.include_router(
            create_sse_router(engine, {Order: OrderOut, Item: ["id", "name"]}, authorize=grant_of),
            prefix="/v1",
        )

    The router has `GET /changes/{table}`, `GET /changes?table=a&table=b`, `GET /wait/{table}/{pk}`
    and `POST /tickets`: a browser's `EventSource`, which can send no header, opens a stream with
    `?ticket=`. `tickets` lets several processes accept each other's tickets. Install triggers
    first; with `log=True` streams can be resumed. FastAPI finishes dependencies after the response:
    an `authorize` with a database session as a dependency would hold it as long as the stream, so
    open and close a session inside it instead.

    `source=` takes the place of the engine: `rowsignal.relay.JetStreamSource` reads the changes
    from NATS, where a relay puts them.

    Key columns that `tables` or a grant leave out are replaced by a digest. Several processes
    need the same `key_secret` (32 random bytes) for readers to resume at another one.

    Raises `ValueError` for tables without a primary key, columns that are not there and other
    databases than PostgreSQL.
    """
    if (engine is None) == (source is None):
        raise ValueError("Changes come from an engine or from a source=: pass one of them.")
    if engine is not None and engine.dialect.name != "postgresql":
        raise ValueError(f"Streams need PostgreSQL: the engine is one of {engine.dialect.name}.")
    dialect = None if engine is None else engine.dialect
    exposures = exposures_of(tables, key_secret=key_secret, dialect=dialect)
    if not exposures:
        raise ValueError("tables names at least one table: nothing else is offered.")
    origin = PostgresSource(engine) if engine is not None else source
    assert origin is not None  # noqa: S101 -- one of them was given
    outlet = Outlet(origin, exposures, limits, hooks)
    return router_of(outlet, authorize, tickets)


def router_of(
    outlet: Outlet, authorize: Authorize, tickets: TicketOffice | None = None
) -> APIRouter:
    """Return the router of an outlet, which is closed with the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        with on_stop_signal(outlet.close_streams):
            yield
        await end_in_time(outlet.aclose)

    office = tickets or TicketOffice()
    router = APIRouter(route_class=ProblemRoute, lifespan=lifespan, tags=["changes"])
    endpoints = Endpoints(outlet)
    # The routes for tickets come first: Starlette takes the first that matches.
    _add_reading(router, endpoints, _by_ticket(office), route_class=TicketRoute)
    _add_reading(router, endpoints, authorize)
    _add_tickets(router, office, authorize)
    return router


def _by_ticket(office: TicketOffice) -> Authorize:
    async def grant_of_ticket(request: Request) -> Grant:
        return office.redeem(request.query_params["ticket"])

    return grant_of_ticket


def _add_reading(
    router: APIRouter,
    endpoints: Endpoints,
    authorize: Authorize,
    *,
    route_class: type[ProblemRoute] = ProblemRoute,
) -> None:
    granted = Depends(authorize)

    async def stream_table(
        table: Annotated[str, Path(description="`schema.table`, or `table` where it is unique.")],
        grant: Annotated[Grant, granted],
        ask: Annotated[Ask, Depends(asked)],
        options: Annotated[StreamOptions, Depends(stream_options)],
    ) -> Response:
        """Stream the changes of one table."""
        return await endpoints.stream([table], grant, ask, options)

    async def stream_tables(
        grant: Annotated[Grant, granted],
        ask: Annotated[Ask, Depends(asked)],
        options: Annotated[StreamOptions, Depends(stream_options)],
        table: Annotated[Texts, Query(description="Several tables.")] = None,
    ) -> Response:
        """Stream the changes of several tables, in the order of the log."""
        return await endpoints.stream(table or (), grant, ask, options)

    async def wait_for_row(
        table: str,
        pk: str,
        grant: Annotated[Grant, granted],
        options: Annotated[WaitOptions, Depends(wait_options)],
    ) -> Response:
        """Wait until a row differs from the version whose ETag is given."""
        return await endpoints.wait(table, pk, grant, options)

    for path, endpoint, responses in (
        ("/changes/{table}", stream_table, STREAM),
        ("/changes", stream_tables, STREAM),
        ("/wait/{table}/{pk:path}", wait_for_row, WAIT),
    ):
        router.add_api_route(
            path,
            endpoint,
            methods=["GET"],
            responses=responses,
            response_class=Response,
            route_class_override=route_class,
            include_in_schema=route_class is ProblemRoute,
        )


def _add_tickets(router: APIRouter, office: TicketOffice, authorize: Authorize) -> None:
    @router.post("/tickets", status_code=201, responses=TICKET)
    async def issue_ticket(
        grant: Annotated[Grant, Depends(authorize)], response: Response
    ) -> dict[str, Any]:
        """Issue a ticket: `?ticket=...` opens one stream, once, within seconds."""
        response.headers["Cache-Control"] = "no-store"
        return {"ticket": office.issue(grant), "expires_in": office.lifetime}
