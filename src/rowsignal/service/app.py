"""The service as an ASGI application."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.metadata import version
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from rowsignal.engines import suit_pooler
from rowsignal.exceptions import RowSignalError
from rowsignal.listener import OUTAGES, Listener
from rowsignal.metrics import PrometheusHooks
from rowsignal.pruning import INTERVAL, keep_pruned
from rowsignal.retention import get_retention, set_retention
from rowsignal.service.catalog import offered_tables
from rowsignal.service.gate import Gate
from rowsignal.service.hosts import LocalHosts
from rowsignal.service.logs import RequestLog, configure_logs
from rowsignal.service.pages import pages_router
from rowsignal.service.settings import Settings
from rowsignal.service.status import StatusReport
from rowsignal.sse import Outlet
from rowsignal.sse.exposures import Exposure
from rowsignal.sse.router import ProblemRoute, router_of

VERSION = version("rowsignal")

log = structlog.get_logger("rowsignal.service")


class Service:
    """Everything that one process of the service holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.hooks = PrometheusHooks(self.registry)
        url = settings.database_url.get_secret_value()
        self.engine: AsyncEngine = create_async_engine(url, pool_pre_ping=True)
        self.exposures: dict[str, Exposure] = {}
        self.outlet = Outlet(self.engine, self.exposures, settings.limits, self.hooks)
        self.status = StatusReport(settings, self.engine, self.outlet)
        self.gate = Gate(settings)
        readers = Gauge("rowsignal_readers", "Open streams.", registry=self.registry)
        readers.set_function(lambda: self.outlet.fanout.readers)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find the tables, listen, prune; leave nothing behind."""
        await suit_pooler(self.engine)
        self.exposures.update(await offered_tables(self.engine, self.settings.tables))
        listen_url = self.settings.listen_url
        url = listen_url.get_secret_value() if listen_url is not None else None
        async with Listener(self.engine, listen_url=url, hooks=self.hooks):
            pruning = asyncio.create_task(self._prune(url), name="rowsignal pruning")
            log.info("ready", tables=sorted(self.exposures))
            try:
                yield
            finally:
                pruning.cancel()
                await asyncio.gather(pruning, return_exceptions=True)
                await self.outlet.aclose()
                await self.status.aclose()
        await self.engine.dispose()

    async def _prune(self, url: str | None) -> None:
        """Keep the log within its retention, whether anybody reads it or not."""
        given = self.settings.retention
        while given:
            try:
                stored = await get_retention(self.engine, url=url)
                await set_retention(self.engine, replace(stored, **given), url=url)
                break
            except (*OUTAGES, RowSignalError) as error:  # as long as there is no log
                log.info("the retention can not be stored yet", reason=str(error))
                await asyncio.sleep(INTERVAL)
        await keep_pruned(self.engine, url)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; without settings they come from the environment."""
    settings = settings or Settings()  # type: ignore[call-arg]  # the rest is in the environment
    configure_logs(settings.log_level, settings.log_format)
    service = Service(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="rowsignal",
        version=VERSION,
        summary="Row changes of a PostgreSQL database, as they are committed.",
        lifespan=lifespan,
        root_path=settings.root_path,
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        middleware=_middleware(settings),
    )
    app.state.service = service
    app.include_router(router_of(service.outlet, service.gate.authorize), prefix="/v1")
    app.include_router(_service_router(service))
    app.include_router(pages_router())
    return app


def _middleware(settings: Settings) -> list[Middleware]:
    stack = [Middleware(RequestLog)]
    if not settings.keys and settings.is_loopback:
        stack.append(Middleware(LocalHosts))
    if settings.cors_origins:
        stack.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(settings.cors_origins),
                allow_credentials=True,
                allow_methods=["GET", "POST"],
                allow_headers=["Authorization", "Last-Event-ID", "If-None-Match"],
                expose_headers=["ETag", "Retry-After"],
            )
        )
    return stack


def _service_router(service: Service) -> APIRouter:
    router = APIRouter(route_class=ProblemRoute, tags=["service"])
    admitted = Depends(service.gate.admit_to_status)

    @router.get("/v1/status", dependencies=[admitted])
    async def status() -> dict[str, Any]:
        """Tell how the service, its listener, its log and its tables are."""
        return await service.status.report(VERSION)

    @router.post("/v1/tickets", status_code=201)
    async def issue_ticket(
        ticket: Annotated[str, Depends(service.gate.issue_ticket)], response: Response
    ) -> dict[str, Any]:
        """Issue a ticket: `?ticket=...` admits to one stream, once, within seconds."""
        response.headers["Cache-Control"] = "no-store"
        return {"ticket": ticket, "expires_in": service.gate.ticket_lifetime}

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @router.get("/health/ready")
    async def ready() -> Response:
        """Tell whether streams can be served just now."""
        reason = await service.status.readiness()
        if reason is None:
            return JSONResponse({"status": "ready"})
        state = "stopping" if reason == "stopping" else "degraded"
        return JSONResponse({"status": state, "reason": reason}, status_code=503)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(_: Request) -> Response:
        return Response(generate_latest(service.registry), media_type=CONTENT_TYPE_LATEST)

    return router
