"""`create_dashboard`: the page with all that it asks for, for any application to mount."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from rowsignal.hooks import Hooks
from rowsignal.service.catalog import offered_tables
from rowsignal.service.hosts import NoSniff
from rowsignal.service.monitor import VERSION, Monitor, monitor_router
from rowsignal.service.on_demand import OnDemand
from rowsignal.service.pages import pages_router
from rowsignal.service.tasks import running_task
from rowsignal.sse import Limits, Outlet, TicketOffice
from rowsignal.sse.access.exposures import Exposure, Offered, Source, exposures_of
from rowsignal.sse.http.router import Authorize, router_of
from rowsignal.sse.http.shutdown import end_in_time, on_stop_signal

IDLE_TIMEOUT = 60.0


def create_dashboard(
    engine: AsyncEngine,
    tables: Mapping[Any, Offered] | Iterable[Source] | None = None,
    *,
    authorize: Authorize,
    limits: Limits | None = None,
    hooks: Hooks | None = None,
    tickets: TicketOffice | None = None,
    idle_timeout: float = IDLE_TIMEOUT,
) -> FastAPI:
    """Make the dashboard as an application that another one mounts, at any path.

        app.mount("/rowsignal", create_dashboard(engine, authorize=grant_of))

    `authorize` is a FastAPI dependency, as for `create_sse_router`: it returns the `Grant` of the
    request's sender or raises `HTTPException`. The page itself holds no data and is shown to every
    browser; what it asks for needs a grant with `status=True`, and shows the tables that the grant
    names. `tables` is what `create_sse_router` takes; without it every table with triggers is
    offered, with all of its columns.

    Nothing has to be started or stopped. The database is asked while a page is open, over
    connections beside the engine's pool, and until `idle_timeout` seconds after the last request.

    Raises `ValueError` for tables that cannot be offered and other databases than PostgreSQL.
    """
    if engine.dialect.name != "postgresql":
        raise ValueError(f"The dashboard needs PostgreSQL, not {engine.dialect.name}.")
    if not callable(authorize):
        raise TypeError(
            "authorize is a function that returns a Grant; to admit every request write"
            " authorize=grant_everything."
        )
    exposures = {} if tables is None else exposures_of(tables)
    mounted = MountedService(engine, exposures, limits, hooks, idle_timeout)
    app = FastAPI(
        title="rowsignal",
        version=VERSION,
        lifespan=mounted.lifespan,
        openapi_url=None,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        middleware=[Middleware(NoSniff), Middleware(WhileUsed, service=mounted.on_demand)],
    )
    app.state.service = mounted
    app.include_router(router_of(mounted.outlet, authorize, tickets), prefix="/v1")
    app.include_router(monitor_router(mounted.monitor, authorize))
    app.include_router(pages_router())
    return app


class MountedService:
    """The state of one mounted dashboard: its streams, and its watch of the database."""

    def __init__(
        self,
        engine: AsyncEngine,
        exposures: dict[str, Exposure],
        limits: Limits | None,
        hooks: Hooks | None,
        idle_timeout: float,
    ) -> None:
        self._engine = engine
        self._hooks = hooks or Hooks()
        self._key_secret = secrets.token_bytes(32)
        self.exposures = exposures
        self.outlet = Outlet(engine, exposures, limits, hooks)
        self.monitor = Monitor(engine, self.outlet, self._find_tables, has_tokens=False)
        self.on_demand = OnDemand(
            self._running,
            idle_timeout=idle_timeout,
            is_over=lambda: self.outlet.fanout.is_closing,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        """End with the application, where it is served by itself."""
        yield
        await self.on_demand.close()

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        probe = self.monitor.probe
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(end_in_time, probe.close)
            stack.enter_context(on_stop_signal(self.outlet.close_streams))
            await probe.begin()
            await stack.enter_async_context(running_task("probe", probe.run, self._hooks))
            try:
                yield
            except asyncio.CancelledError:  # for good, not for want of use
                await end_in_time(self.outlet.aclose)
                raise

    async def _find_tables(self) -> None:
        """Find what to offer, as long as that is nothing."""
        if not self.exposures:
            found = await offered_tables(self._engine, {}, key_secret=self._key_secret)
            self.exposures.update(found)


class WhileUsed:
    """Keeps a service open while requests are answered."""

    def __init__(self, app: ASGIApp, service: OnDemand) -> None:
        self.app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        with self._service.used():
            await self.app(scope, receive, send)
