"""A gateway: the streams of the service, read from NATS instead of PostgreSQL."""

import contextlib
import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, NoReturn

import structlog
from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from rowsignal.exceptions import RowSignalError, UnsupportedError
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import Listener
from rowsignal.metrics import PrometheusHooks
from rowsignal.postgres.urls import asyncpg_url
from rowsignal.relay import JetStreamSource, StreamWatch
from rowsignal.relay.descriptions import Description
from rowsignal.relay.offered import described_tables, offered_of
from rowsignal.service.app import middleware_of
from rowsignal.service.gate import Gate
from rowsignal.service.gateway_status import NO_HISTORY, GatewayDoctor, GatewayStatus
from rowsignal.service.logs import configure_logs
from rowsignal.service.metrics import VisibleMetrics, register_process
from rowsignal.service.monitor import VERSION, add_state, admits_to_status
from rowsignal.service.pages import pages_router
from rowsignal.service.readers import ReadersReport
from rowsignal.service.settings import Settings
from rowsignal.service.sharing import shared_limits, ticket_office
from rowsignal.service.tasks import running_task
from rowsignal.sse import Grant, Outlet
from rowsignal.sse.access.exposures import Exposure, exposures_of
from rowsignal.sse.http.problems import ProblemRoute
from rowsignal.sse.http.router import router_of
from rowsignal.sse.http.shutdown import end_in_time

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
        self.hooks = PrometheusHooks(self.registry)
        self.outlet = Outlet(
            self.source, self.exposures, settings.limits, self.hooks, shared=shared
        )
        self.watch = StreamWatch(self._nats, self._database)
        self.status = GatewayStatus(
            self.outlet, self.source, self.watch, self._database, has_tokens=bool(settings.keys)
        )
        self.outlet.fanout.flushed = self.status.figures.delivered
        self._described: Mapping[QualifiedName, Description] = {}
        register_process(self.registry)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Find the tables and stay connected; leave no task and no connection."""
        async with contextlib.AsyncExitStack() as stack:
            if self.engine is not None:
                stack.push_async_callback(end_in_time, self.engine.dispose)
                self._register_listener(self.engine, stack)
            stack.push_async_callback(end_in_time, self.source.aclose)
            stack.push_async_callback(end_in_time, self.outlet.aclose)
            await self._offer(await described_tables(self._nats, self._database))
            # One feed stays open: the first reader after a pause need not wait for a connection.
            await stack.enter_async_context(self.source.feed(()))
            for name, work in (("stream watch", self.watch.run), ("tables", self._follow_tables)):
                await stack.enter_async_context(running_task(name, work, self.hooks))
            log.info("ready", tables=sorted(self.exposures))
            yield

    def _register_listener(self, engine: AsyncEngine, stack: contextlib.AsyncExitStack) -> None:
        """Register the listener of long polls, whose hints are the messages of the relay."""
        # A database that goes by another name here is not the relay's: its listener uses LISTEN.
        is_relayed = engine.url.database == self._database
        url = self._nats if is_relayed else None
        listener = Listener(engine, listen_url=url, hooks=self.hooks)
        listener.register()
        stack.push_async_callback(end_in_time, listener.close)

    async def _follow_tables(self) -> NoReturn:
        """Offer tables that are relayed later, and columns that are new."""
        while True:
            await self.watch.tables_changed.wait()
            self.watch.tables_changed.clear()
            await self._offer(self.watch.tables)
            log.info("tables are described anew", tables=sorted(self.exposures))

    async def _offer(self, found: Mapping[QualifiedName, Description]) -> None:
        """Offer tables as they are described now; streams of those that changed begin again."""
        before, self._described = self._described, found
        offered = offered_of(found, self.settings.tables or None)
        for name, it in exposures_of(offered, key_secret=self._key_secret()).items():
            if before.get(it.full_name) != found[it.full_name]:
                self.exposures[name] = it
                await self.outlet.fanout.reopen(name)

    def _key_secret(self) -> bytes:
        """Return the secret of row keys: of all hosts, else of this host."""
        secret = self.settings.token_secret
        base = secret.get_secret_value().encode() if secret is not None else self.tickets.secret
        return hashlib.sha256(b"row keys" + base).digest()

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
    app.include_router(_status_router(gateway))
    app.include_router(_health_router(gateway))
    app.include_router(pages_router())
    return app


def _status_router(gateway: Gateway) -> APIRouter:
    """Return what answers the page's questions, as far as NATS knows the answers."""
    router = APIRouter(route_class=ProblemRoute, tags=["gateway"])
    admit = admits_to_status(gateway.gate.authorize)
    add_state(
        router,
        admit,
        of_status=gateway.status,
        of_readers=ReadersReport(None, gateway.outlet),
        of_doctor=GatewayDoctor(gateway.watch, gateway.status.database),
    )

    async def no_history(_: Annotated[Grant, Depends(admit)]) -> None:
        raise UnsupportedError(NO_HISTORY)

    for path in ("history", "history/{table}/{pk:path}", "transactions/{number}", "timeline"):
        router.add_api_route(f"/v1/{path}", no_history, include_in_schema=False)
    return router


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
