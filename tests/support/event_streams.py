"""Tables to stream, and readers that see every byte of the streams."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from rowsignal.sse import FrameParser
from rowsignal.triggers import install_triggers

PATIENCE = 30.0


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    status: Mapped[str | None] = mapped_column(sa.Text, default="open")
    total: Mapped[Any] = mapped_column(sa.Numeric, default=0)
    customer: Mapped[int] = mapped_column(sa.Integer, default=1)
    secret: Mapped[str] = mapped_column(sa.Text, default="s3cret")


class Item(Base):
    __tablename__ = "items"
    order_id: Mapped[int] = mapped_column(sa.Integer, primary_key=True)
    name: Mapped[str] = mapped_column(sa.Text, primary_key=True)
    amount: Mapped[int] = mapped_column(sa.Integer, default=1)


async def make_tables(engine: AsyncEngine, **settings: Any) -> None:
    """Create the tables and install triggers; the settings beside `log` are for orders."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    log = settings.pop("log", True)
    await install_triggers(engine, Order, log=log, **settings)
    await install_triggers(engine, Item, log=log)


async def execute(engine: AsyncEngine, *statements: str) -> None:
    """Run statements in one transaction."""
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(sa.text(statement))


@dataclass
class Event:
    """One event as it arrived, with the id that is in force after it."""

    name: str
    data: dict[str, Any]
    id: str

    @property
    def key(self) -> Any:
        """The key's values; one alone stands for itself."""
        values = tuple((self.data.get("key") or {}).values())
        return values[0] if len(values) == 1 else values


@dataclass
class EventReader:
    """One open stream, read from a plain socket so that a test can stall or cut it anywhere."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    is_over: bool = False
    retries: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._parser = FrameParser(self.retries.append)
        self._unseen = 0

    @property
    def last_id(self) -> str:
        """What a browser would send as Last-Event-ID."""
        return self._parser.last_id

    async def read_some(self) -> bool:
        """Take the next chunk; tell whether there was one."""
        try:
            size = int(await self.reader.readline() or b"0", 16)
            chunk = await self.reader.readexactly(size + 2)
        except asyncio.IncompleteReadError as cut:  # browsers take what came before
            self._take(cut.partial[:size])
            self.is_over = True
            return False
        except (ConnectionError, ValueError):
            self.is_over = True
            return False
        if not size:
            self.is_over = True
            return False
        self._take(chunk[:-2])
        return True

    def _take(self, data: bytes) -> None:
        for name, text in self._parser.feed(data):
            self.events.append(Event(name, json.loads(text), self._parser.last_id))

    async def until(self, is_wanted: Callable[[Event], bool] | str) -> Event:
        """Return the next event of a name, or of a kind; fail when the stream ends before."""
        matches = (lambda it: it.name == is_wanted) if isinstance(is_wanted, str) else is_wanted
        async with asyncio.timeout(PATIENCE):
            while True:
                while self._unseen < len(self.events):
                    event = self.events[self._unseen]
                    self._unseen += 1
                    if matches(event):
                        return event
                assert await self.read_some(), f"the stream ended: {self.events[-3:]}"

    async def rest(self) -> list[Event]:
        """Read to the end and return all events that were not looked at."""
        async with asyncio.timeout(PATIENCE):
            while await self.read_some():
                pass
        unseen, self._unseen = self.events[self._unseen :], len(self.events)
        return unseen

    def cut(self) -> None:
        """Reset the connection."""
        self.writer.transport.abort()


@asynccontextmanager
async def reading(
    port: int,
    path: str,
    *,
    headers: dict[str, str] | None = None,
    buffer: int | None = None,
    patience: float = PATIENCE,
) -> AsyncIterator[EventReader]:
    """Open a stream; `buffer` makes this side's socket buffer small."""
    sock = socket.socket()
    if buffer is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
    except BaseException:
        sock.close()
        raise
    reader, writer = await asyncio.open_connection(sock=sock, limit=2**16)
    lines = [f"GET {path} HTTP/1.1", "Host: localhost", *_lines(headers or {}), "", ""]
    writer.write("\r\n".join(lines).encode())
    found = EventReader(reader, writer)
    try:
        async with asyncio.timeout(patience):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        found.status = int(head[0].split()[1])
        pairs = (line.split(": ", 1) for line in head[1:] if line)
        found.headers = {name.lower(): value for name, value in pairs}
        yield found
    finally:
        writer.transport.abort()


def _lines(headers: dict[str, str]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers.items()]
