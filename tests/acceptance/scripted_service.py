"""A service whose every move is the test's: it speaks the stream format over real HTTP."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

import rowsignal.sse.client
from support import web_server

CLIENT = Path(rowsignal.sse.client.__file__).with_name("client.js")
Row = dict[str, object]


class ScriptedService:
    """One table `public.orders` with a log in memory, and knobs for everything that goes wrong."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.log: list[tuple[str, Row]] = []
        self.requests: list[dict[str, str]] = []
        self.tickets: set[str] = set()
        self.open = 0
        self.interval = 15.0
        self.logged = True
        self.status = 200
        self.stalled = False
        self.cut_snapshot_after: int | None = None
        self.needs_ticket = False
        self.token: str | None = None
        self.url = ""
        self._moved = asyncio.Condition()
        self._epoch = 0
        self._farewell = ""

    async def write(self, operation: str, number: int | None, **values: object) -> None:
        """Commit one change."""
        key = None if number is None else {"id": number}
        data: Row = {"operation": operation, "schema": "public", "table": "orders", "key": key}
        data |= {"changed": list(values) if operation == "update" else None}
        if operation == "truncate":
            self.rows.clear()
        elif operation == "delete":
            self.rows.pop(number or 0, None)
        elif number is not None:
            self.rows[number] = self.rows.get(number, {"id": number}) | values
            data["row"] = self.rows[number]
        self.log.append((operation, data))
        await self._wake()

    async def say(self, event: str, **data: object) -> None:
        """Send an event that is not in the log to all connected readers."""
        self._farewell = frame(event, data, "" if event == "reset" else None)
        await self.cut()

    async def cut(self) -> None:
        """End every open stream."""
        self._epoch += 1
        await self._wake()
        async with self._moved:
            await self._moved.wait_for(lambda: self.open == 0)
        self._farewell = ""

    async def connected(self, number: int) -> None:
        """Wait until that many streams are open."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.open == number)

    async def requested(self, number: int) -> None:
        """Wait until that many streams have been asked for."""
        async with self._moved:
            await self._moved.wait_for(lambda: len(self.requests) >= number)

    async def _wake(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def changes(self, request: Request) -> Response:
        query = dict(request.query_params)
        self.requests.append(query)
        await self._wake()
        if self.status != 200:
            problem = {
                "title": "Refused",
                "status": self.status,
                "detail": f"scripted {self.status}",
            }
            return JSONResponse(problem, self.status, media_type="application/problem+json")
        if self.token and request.headers.get("authorization") != f"Bearer {self.token}":
            return JSONResponse({"detail": "the token is not good"}, 401)
        if self.needs_ticket and not self._spend(query.get("ticket", "")):
            return JSONResponse({"detail": "no such ticket"}, 401)
        return StreamingResponse(self._stream(query), media_type="text/event-stream")

    async def ticket(self, request: Request) -> Response:
        if request.headers.get("authorization") != "Bearer good":
            return JSONResponse({"detail": "the token is not good"}, 401)
        self.tickets.add(ticket := f"ticket-{len(self.requests)}")
        return JSONResponse({"ticket": ticket, "expires_in": 30}, 201)

    def _spend(self, ticket: str) -> bool:
        known = ticket in self.tickets
        self.tickets.discard(ticket)
        return known

    async def _stream(self, query: dict[str, str]) -> AsyncIterator[str]:
        epoch = self._epoch
        self.open += 1
        await self._wake()
        try:
            yield frame("heartbeat", {"at": "", "interval": self.interval})
            place = int(query.get("after", len(self.log)))
            if "after" not in query and query.get("snapshot") == "true":
                for text in self._snapshot():
                    yield text
                if self.cut_snapshot_after is not None:
                    self.cut_snapshot_after = None
                    self.rows.pop(1)
                    return
                place = len(self.log)
            async for text in self._follow(place, epoch):
                yield text
        finally:
            self.open -= 1
            await self._wake()

    def _snapshot(self) -> list[str]:
        place = {"schema": "public", "table": "orders"}
        shown = [
            frame("snapshot", {**place, "key": {"id": number}, "row": row})
            for number, row in self.rows.items()
        ]
        end = frame("snapshot-end", {"tables": ["public.orders"]}, self._position(len(self.log)))
        return (
            [*shown, end] if self.cut_snapshot_after is None else shown[: self.cut_snapshot_after]
        )

    async def _follow(self, place: int, epoch: int) -> AsyncIterator[str]:
        while epoch == self._epoch:
            while place < len(self.log) and not self.stalled:
                event, data = self.log[place]
                place += 1
                yield frame(event, data, self._position(place))
            if not self.stalled:
                yield frame(
                    "heartbeat", {"at": "", "interval": self.interval}, self._position(place)
                )
            await self._moved_or(self.interval)
        yield self._farewell

    def _position(self, place: int) -> str | None:
        return str(place) if self.logged else None

    async def _moved_or(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds), self._moved:
                await self._moved.wait()
        except TimeoutError:
            return


def frame(event: str, data: Row, position: str | None = None) -> str:
    """One event as it goes over the wire."""
    number = "" if position is None else f"id: {position}\n"
    return f"event: {event}\n{number}data: {json.dumps(data)}\n\n"


async def blank(_: Request) -> Response:
    return HTMLResponse("<!doctype html><title>blank</title>")


async def script(_: Request) -> Response:
    return FileResponse(CLIENT, media_type="text/javascript")


@asynccontextmanager
async def serving(service: ScriptedService) -> AsyncIterator[ScriptedService]:
    """Serve it on a port of its own while the block runs."""
    routes = [
        Route("/", blank),
        Route("/client.js", script),
        Route("/v1/changes/{table}", service.changes),
        Route("/v1/tickets", service.ticket, methods=["POST"]),
    ]
    async with web_server.serving(Starlette(routes=routes)) as site:
        service.url = site.address
        try:
            yield service
        finally:
            service.status = 503
            site.server.should_exit = True
            await service.cut()
