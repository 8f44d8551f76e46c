"""A gateway: the streams of the service, read from NATS instead of PostgreSQL."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.exceptions import RowSignalError
from rowsignal.metrics import PrometheusHooks
from rowsignal.postgres.urls import asyncpg_url
from rowsignal.relay import JetStreamSource, relayed_tables
from rowsignal.service.app import middleware_of
from rowsignal.service.gate import Gate
from rowsignal.service.logs import configure_logs
from rowsignal.service.metrics import VisibleMetrics, register_process
from rowsignal.service.pages import client_router
from rowsignal.service.settings import Settings
from rowsignal.service.sharing import shared_limits, ticket_office
from rowsignal.sse import Grant, Outlet
from rowsignal.sse.access.exposures import Exposure, exposures_of
from rowsignal.sse.http.problems import ProblemRoute
from rowsignal.sse.http.router import router_of
from rowsignal.sse.http.shutdown import end_in_time

VERSION = version("rowsignal")

log = structlog.get_logger("rowsignal.gateway")


class Gateway:
    """Everything that one process of a gateway holds."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.gate = Gate(settings)
        self.exposures: dict[str, Exposure] = {}
        self.engine = _engine_of(settings)
        self._nats, self._database = nats_of(settings)
        shared = shared_limits(_limits_url(settings, self._nats), self._database)
        self.tickets = ticket_office(settings, shared)
        self.source = JetStreamSource(self._nats, self._database, engine=self.engine)
        hooks = PrometheusHooks(self.registry)
        self.outlet = Outlet(self.source, self.exposures, settings.limits, hooks, shared=shared)
        register_process(self.registry)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find the tables and stay connected; leave no task and no connection."""
        async with contextlib.AsyncExitStack() as stack:
            if self.engine is not None:
                stack.push_async_callback(end_in_time, self.engine.dispose)
            stack.push_async_callback(end_in_time, self.source.aclose)
            stack.push_async_callback(end_in_time, self.outlet.aclose)
            await self._find_tables()
            # One feed stays open: the first reader after a pause need not wait for a connection.
            await stack.enter_async_context(self.source.feed(()))
            log.info("ready", tables=sorted(self.exposures))
            yield

    async def _find_tables(self) -> None:
        offered = await relayed_tables(self._nats, self._database, self.settings.tables or None)
        key_secret = hashlib.sha256(b"row keys" + self.tickets.secret).digest()
        self.exposures.update(exposures_of(offered, key_secret=key_secret))

    async def problem(self) -> str | None:
        """Return why streams cannot be served just now, or None."""
        if self.outlet.fanout.is_closing:
            return "stopping"
        try:
            await self.source.catch_up()
        except RowSignalError as error:
            return str(error)
        return None


def _engine_of(settings: Settings) -> AsyncEngine | None:
    url = settings.database_url.get_secret_value()
    if not url:
        return None
    return create_async_engine(asyncpg_url(url), pool_pre_ping=True, hide_parameters=True)


def nats_of(settings: Settings) -> tuple[str, str]:
    """Return where NATS is, and the database whose changes are read; raise where one is missing."""
    url = settings.database_url.get_secret_value()
    database = settings.nats_database or (asyncpg_url(url).database if url else None)
    if settings.nats_url is None or not database:
        raise ValueError("A gateway needs ROWSIGNAL_NATS_URL, and ROWSIGNAL_NATS_DATABASE.")
    return settings.nats_url.get_secret_value(), database


def _limits_url(settings: Settings, nats: str) -> str:
    return nats if settings.shared_limits is None else settings.shared_limits.get_secret_value()


def create_gateway(settings: Settings | None = None) -> FastAPI:
    """Make the application; without settings they come from the environment."""
    settings = settings or Settings()  # type: ignore[call-arg]  # the rest is in the environment
    configure_logs(settings.log_level, settings.log_format)
    gateway = Gateway(settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with gateway.running():
            yield

    app = FastAPI(
        title="rowsignal gateway",
        version=VERSION,
        summary="Row changes of a PostgreSQL database, as a relay has put them into NATS.",
        lifespan=lifespan,
        root_path=settings.root_path,
        docs_url=None,
        redoc_url=None,
        middleware=middleware_of(settings),
    )
    app.state.gateway = gateway
    streams = router_of(gateway.outlet, gateway.gate.authorize, gateway.tickets)
    app.include_router(streams, prefix="/v1")
    app.include_router(_health_router(gateway))
    app.include_router(client_router())
    return app


def _health_router(gateway: Gateway) -> APIRouter:
    router = APIRouter(route_class=ProblemRoute, tags=["gateway"])

    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @router.get("/health/ready")
    async def ready() -> Response:
        """Tell whether streams can be served just now."""
        reason = await gateway.problem()
        if reason is None:
            return JSONResponse({"status": "ready"})
        state = "stopping" if reason == "stopping" else "degraded"
        return JSONResponse({"status": state, "reason": reason}, status_code=503)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(grant: Annotated[Grant, Depends(gateway.gate.grant_of_scraper)]) -> Any:
        visible = VisibleMetrics(gateway.registry, grant)
        return Response(generate_latest(visible), media_type=CONTENT_TYPE_LATEST)

    return router
