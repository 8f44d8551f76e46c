"""The service as an ASGI application."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, FastAPI, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from rowsignal.change_log.pruning import INTERVAL, keep_pruned
from rowsignal.change_log.retention import get_retention, set_retention
from rowsignal.exceptions import RowSignalError
from rowsignal.listener import OUTAGES, Listener
from rowsignal.metrics import PrometheusHooks
from rowsignal.nats.subjects import is_nats
from rowsignal.postgres.connections import suit_pooler
from rowsignal.postgres.urls import asyncpg_url, text_of
from rowsignal.service.catalog import offered_tables
from rowsignal.service.figures import SAMPLES_A_FLUSH
from rowsignal.service.gate import Gate
from rowsignal.service.hosts import LocalHosts, NoSniff
from rowsignal.service.logs import RequestLog, configure_logs
from rowsignal.service.metrics import ServiceMetrics, VisibleMetrics, register_process
from rowsignal.service.monitor import VERSION, Monitor, monitor_router
from rowsignal.service.pages import pages_router
from rowsignal.service.settings import Settings
from rowsignal.service.sharing import shared_limits, ticket_office
from rowsignal.service.tasks import running_task
from rowsignal.sse import Grant, Outlet
from rowsignal.sse.access.events import Event
from rowsignal.sse.access.exposures import Exposure
from rowsignal.sse.http.problems import ProblemRoute, described
from rowsignal.sse.http.router import router_of
from rowsignal.sse.http.shutdown import end_in_time
from rowsignal.sse.sharing import SharedLimits

log = structlog.get_logger("rowsignal.service")


class Service:
    """The state of one process of the service."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.registry = CollectorRegistry()
        self.hooks = PrometheusHooks(self.registry)
        url = settings.database_url.get_secret_value()
        self.engine: AsyncEngine = create_async_engine(
            asyncpg_url(url), pool_pre_ping=True, hide_parameters=True
        )
        self.exposures: dict[str, Exposure] = {}
        shared = self._shared_limits()
        self.tickets = ticket_office(settings, shared)
        self.outlet = Outlet(
            self.engine, self.exposures, settings.limits, self.hooks, shared=shared
        )
        self.monitor = Monitor(
            self.engine,
            self.outlet,
            self._find_tables,
            has_tokens=bool(settings.keys),
            listen_url=self._listen_url(),
        )
        self.probe = self.monitor.probe
        self.gate = Gate(settings)
        register_process(self.registry)
        self.registry.register(ServiceMetrics(self.outlet, self.probe, VERSION))
        self.outlet.fanout.flushed = self._delivered

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find the tables, listen and prune; close all tasks and connections at the end."""
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(end_in_time, self.engine.dispose)
            await suit_pooler(self.engine)
            await self._find_tables()
            url = self._listen_url()
            listener = Listener(self.engine, listen_url=url, hooks=self.hooks)
            await listener.__aenter__()
            stack.push_async_callback(end_in_time, listener.close)
            stack.push_async_callback(end_in_time, self.outlet.aclose)
            stack.push_async_callback(end_in_time, self.probe.close)
            await self.probe.begin()
            await stack.enter_async_context(running_task("probe", self.probe.run, self.hooks))
            prune = partial(self._prune, listener.read_url)
            await stack.enter_async_context(running_task("pruning", prune, self.hooks))
            log.info("ready", tables=sorted(self.exposures))
            yield

    async def _find_tables(self) -> None:
        """Look for tables to offer until there is one."""
        if not self.exposures:
            secret = hashlib.sha256(b"row keys" + self._key_secret()).digest()
            found = await offered_tables(self.engine, self.settings.tables, key_secret=secret)
            self.exposures.update(found)

    def _delivered(self, events: Sequence[Event]) -> None:
        self.monitor.delivered(events)
        now = time.time()
        for event in events[:SAMPLES_A_FLUSH]:
            if event.captured_at is not None:
                self.hooks.delivery.observe(max(now - event.captured_at.timestamp(), 0.0))

    def _key_secret(self) -> bytes:
        """Return the secret that all hosts share, else the secret of this host."""
        secret = self.settings.token_secret
        return secret.get_secret_value().encode() if secret is not None else self.tickets.secret

    def _shared_limits(self) -> SharedLimits | None:
        url = self.settings.shared_limits
        database = self.engine.url.database or "postgres"
        return None if url is None else shared_limits(url.get_secret_value(), database)

    def _listen_url(self) -> str | None:
        if self.settings.listen_url is None:
            return None
        url = self.settings.listen_url.get_secret_value()
        return url if is_nats(url) else text_of(url)

    async def _prune(self, url: str | None) -> None:
        """Prune the log, also while no process reads it."""
        given = self.settings.retention
        while given:
            try:
                stored = await get_retention(self.engine, url=url)
                await set_retention(self.engine, replace(stored, **given), url=url)
                break
            except (*OUTAGES, RowSignalError) as error:  # expected while there is no log
                log.info("the retention cannot be stored yet", reason=described(error))
                await asyncio.sleep(INTERVAL)
        await keep_pruned(self.engine, url)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Create the application; by default the settings come from the environment."""
    settings = settings or Settings()  # type: ignore[call-arg]  # the rest is in the environment
    configure_logs(settings.log_level, settings.log_format)
    for renamed in settings.old_names():
        log.warning("a setting has another name", renamed=renamed)
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
        middleware=middleware_of(settings),
    )
    app.state.service = service
    app.include_router(
        router_of(service.outlet, service.gate.authorize, service.tickets), prefix="/v1"
    )
    app.include_router(monitor_router(service.monitor, service.gate.authorize))
    app.include_router(_metrics_router(service))
    app.include_router(pages_router())
    return app


def middleware_of(settings: Settings) -> list[Middleware]:
    """Return what surrounds the endpoints, of the service and of a gateway."""
    stack = [Middleware(RequestLog), Middleware(NoSniff)]
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


def _metrics_router(service: Service) -> APIRouter:
    router = APIRouter(route_class=ProblemRoute)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(
        grant: Annotated[Grant, Depends(service.gate.grant_of_scraper)],
    ) -> Response:
        visible = VisibleMetrics(service.registry, grant)
        return Response(generate_latest(visible), media_type=CONTENT_TYPE_LATEST)

    return router
