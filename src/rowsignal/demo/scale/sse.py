"""Streams over HTTP as a plain client reads them: no library between the bytes and the check."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from rowsignal.sse import FrameParser

TIMEOUT = 5.0  # seconds to connect, and for the head of an answer
SILENCE = 4.0  # several heartbeats
AWAY = (OSError, EOFError, TimeoutError, ValueError)


@dataclass(frozen=True, slots=True)
class Received:
    """One event, with the id that is in force after it."""

    name: str
    data: Mapping[str, Any]
    id: str


class EventStream:
    """One open stream of a gateway."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._parser = FrameParser()

    async def next(self) -> list[Received] | None:
        """Return the events of the next piece; None at the end.

        Raises one of `AWAY` where the connection is cut or silent.
        """
        async with asyncio.timeout(SILENCE):
            size = int(await self._reader.readline(), 16)
            piece = await self._reader.readexactly(size + 2)
        if not size:
            return None
        events = []
        for name, text in self._parser.feed(piece[:-2]):
            events.append(Received(name, json.loads(text), self._parser.last_id))
        return events


@asynccontextmanager
async def open_stream(
    host: str, port: int, tables: Sequence[str], last_id: str
) -> AsyncIterator[EventStream]:
    """Open a stream after an id, or with the current rows; raise one of `AWAY` where it is not."""
    query = [*(("table", name) for name in tables), ("snapshot", "true")]
    headers = {"Last-Event-ID": last_id} if last_id else {}
    async with _connection(host, port) as (reader, writer):
        status = await _ask(reader, writer, f"/v1/changes?{urlencode(query)}", headers)
        if status != 200:
            raise ConnectionError(f"The gateway answered {status}.")
        yield EventStream(reader)


async def is_ready(host: str, port: int) -> bool:
    """Tell whether a gateway can serve streams."""
    try:
        async with _connection(host, port) as (reader, writer):
            return await _ask(reader, writer, "/health/ready", {}) == 200
    except AWAY:
        return False


@asynccontextmanager
async def _connection(
    host: str, port: int
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with asyncio.timeout(TIMEOUT):
        reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def _ask(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    path: str,
    headers: Mapping[str, str],
) -> int:
    lines = [f"GET {path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    async with asyncio.timeout(TIMEOUT):
        head = await reader.readuntil(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1])
