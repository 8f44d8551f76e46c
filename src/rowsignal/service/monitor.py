"""The endpoints behind the page: status, history, readers and the doctor's findings."""

from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Depends, Query, Response
from fastapi.responses import JSONResponse
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.exceptions import NotPermittedError
from rowsignal.service.findings import DoctorReport
from rowsignal.service.history import MAX_SHOWN, SHOWN, LogHistory
from rowsignal.service.probe import Probe
from rowsignal.service.readers import ReadersReport
from rowsignal.service.status import StatusReport
from rowsignal.sse import Grant, Outlet
from rowsignal.sse.access.events import Event
from rowsignal.sse.http.problems import ProblemRoute
from rowsignal.sse.http.router import Authorize

VERSION = version("rowsignal")


class Status(Protocol):
    """The interface of a status report."""

    async def report(self, version: str, grant: Grant) -> dict[str, Any]:
        """Return the status as a JSON object, with the tables that a grant names."""


class Doctor(Protocol):
    """The interface of a doctor: it examines, and reports its findings."""

    async def report(self, grant: Grant, *, again: bool) -> dict[str, Any]:
        """Return the findings, the worst first; with `again`, those of just now."""


class Monitor:
    """Answers what pages ask, of what the probe, the outlet and the log know."""

    def __init__(
        self,
        engine: AsyncEngine,
        outlet: Outlet,
        find_tables: Callable[[], Awaitable[None]],
        *,
        has_tokens: bool,
        listen_url: str | None = None,
    ) -> None:
        self.probe = Probe(engine, outlet, find_tables)
        self.status = StatusReport(engine, outlet, self.probe, has_tokens=has_tokens)
        self.history = LogHistory(engine, outlet.exposures)
        self.readers = ReadersReport(engine, outlet)
        self.doctor = DoctorReport(engine, self.status, listen_url)
        outlet.fanout.flushed = self.delivered

    def delivered(self, events: Sequence[Event]) -> None:
        """Take in events that are on their way to readers."""
        self.status.figures.delivered(events)


def monitor_router(monitor: Monitor, authorize: Authorize) -> APIRouter:
    """Return what answers the page's questions, to grants that admit to the status."""
    router = APIRouter(route_class=ProblemRoute, tags=["service"])
    admit = admits_to_status(authorize)
    add_state(
        router,
        admit,
        of_status=monitor.status,
        of_readers=monitor.readers,
        of_doctor=monitor.doctor,
    )
    _add_past(router, monitor, admit)
    _add_health(router, monitor)
    return router


def admits_to_status(authorize: Authorize) -> Authorize:
    """Return the dependency that wants a grant with `status`."""

    async def admit(grant: Annotated[Grant, Depends(authorize)]) -> Grant:
        if not grant.status:
            raise NotPermittedError('This grant does not say "status": true.')
        return grant

    return admit


def add_state(
    router: APIRouter,
    admit: Authorize,
    *,
    of_status: Status,
    of_readers: ReadersReport,
    of_doctor: Doctor,
) -> None:
    """Add the routes of what is so just now."""
    granted = Depends(admit)

    @router.get("/v1/status")
    async def status(grant: Annotated[Grant, granted]) -> dict[str, Any]:
        """Tell how the service, what it reads from and the granted tables are."""
        return await of_status.report(VERSION, grant)

    @router.get("/v1/readers")
    async def readers(grant: Annotated[Grant, granted]) -> dict[str, Any]:
        """Tell of the open streams of this process, and of the consumers of the log."""
        return await of_readers.report(grant)

    @router.get("/v1/doctor")
    async def doctor(
        grant: Annotated[Grant, granted],
        again: Annotated[bool, Query(description="Not those of the last minute.")] = False,
    ) -> dict[str, Any]:
        """Tell what the doctor finds, and how to fix it."""
        return await of_doctor.report(grant, again=again)


def _add_past(router: APIRouter, monitor: Monitor, admit: Authorize) -> None:
    granted, history = Depends(admit), monitor.history

    @router.get("/v1/history")
    async def recent(
        grant: Annotated[Grant, granted],
        table: Annotated[list[str] | None, Query(description="Only these tables.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_SHOWN)] = SHOWN,
    ) -> dict[str, Any]:
        """Return the newest changes in the log, the newest first."""
        return await history.recent(grant, table or (), limit)

    @router.get("/v1/history/{table}/{pk:path}")
    async def row(table: str, pk: str, grant: Annotated[Grant, granted]) -> dict[str, Any]:
        """Return a row as it is now, and its changes in the log, the newest first."""
        return await history.row(grant, table, pk)

    @router.get("/v1/transactions/{number}")
    async def transaction(number: str, grant: Annotated[Grant, granted]) -> dict[str, Any]:
        """Return the changes of one transaction, in their order."""
        return await history.transaction(grant, number)

    @router.get("/v1/timeline")
    async def timeline(grant: Annotated[Grant, granted]) -> dict[str, Any]:
        """Return how often the tables changed in the fractions of the last minute and a half."""
        return {"tables": await history.timeline(grant)}


def _add_health(router: APIRouter, monitor: Monitor) -> None:
    @router.get("/health/live")
    async def live() -> dict[str, str]:
        """Tell that the process answers."""
        return {"status": "ok"}

    @router.get("/health/ready")
    async def ready() -> Response:
        """Tell whether streams can be served just now."""
        reason = monitor.status.readiness()
        if reason is None:
            return JSONResponse({"status": "ready"})
        state = "stopping" if reason == "stopping" else "degraded"
        return JSONResponse({"status": state, "reason": reason}, status_code=503)
