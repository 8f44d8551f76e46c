"""The replication connection: libpq's COPY BOTH through psycopg's wrapper of libpq.

See PostgreSQL's manual, "Streaming Replication Protocol", and psycopg's `psycopg.pq`.
"""

import asyncio
import struct
import time
from typing import Any, NamedTuple, Self

from psycopg import OperationalError, pq
from psycopg.conninfo import make_conninfo
from sqlalchemy.engine import URL, make_url

from rowsignal.exceptions import UnavailableError
from rowsignal.relay.wal.texts import TEXT_SETTINGS

EPOCH = 946_684_800  # 2000-01-01, from which PostgreSQL counts
STATUS = struct.Struct("!cQQQqB")
WAL_DATA, KEEPALIVE = ord("w"), ord("k")
WAL_DATA_HEADER = struct.Struct("!QQq")
KEEPALIVE_HEADER = struct.Struct("!QqB")
CONNECT_TIMEOUT = 10
SENDER_TIMEOUT = "5s"  # after which the server lets go of a slot whose reader is silent
IN_USE = "55006"
# A row that is larger than libpq's buffer comes in pieces; TLS may hold one back.
ATTEMPTS = 3
KNOWN = frozenset(option.keyword.decode() for option in pq.Conninfo.get_defaults())


class Keepalive(NamedTuple):
    """A keepalive of the server: everything that was committed before `end` has been sent."""

    end: int
    wants_reply: bool


class SlotInUseError(UnavailableError):
    """Another process reads the slot."""


class ReplicationError(UnavailableError):
    """The server has refused a command of the replication protocol, or ended the stream."""


def conninfo_of(url: URL | str) -> str:
    """Return libpq's connection string for the database of an engine's URL.

    >>> conninfo_of("postgresql+asyncpg://ann@/shop?host=/run/pg&ssl=require")
    'dbname=shop user=ann host=/run/pg sslmode=require'
    """
    url = make_url(url)
    given: dict[str, Any] = url.translate_connect_args(database="dbname", username="user")
    query = dict(url.query)
    if "dsn" in query:  # where asyncpg takes what it has no keyword for
        query |= dict(make_url(str(query.pop("dsn"))).query)
    if "ssl" in query:
        query["sslmode"] = query.pop("ssl")
    for name, value in query.items():
        if name in KNOWN:
            given[name] = value if isinstance(value, str) else ",".join(value)
    return make_conninfo(**given)


def _for_replication(conninfo: str) -> bytes:
    settings = TEXT_SETTINGS | {"wal_sender_timeout": SENDER_TIMEOUT}
    encoding = settings.pop("client_encoding")
    options = " ".join(f"-c {name}={_escaped(value)}" for name, value in settings.items())
    return make_conninfo(
        conninfo,
        replication="database",
        client_encoding=encoding,
        options=options,
        application_name="rowsignal relay",
        connect_timeout=CONNECT_TIMEOUT,
    ).encode()


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace(" ", r"\ ")


class ReplicationConnection:
    """One connection that reads a slot. Cancelling what waits on it loses nothing."""

    def __init__(self, pgconn: pq.abc.PGconn) -> None:
        self._pgconn = pgconn
        self._received = 0
        self._is_interrupted = False
        self._wake = asyncio.Event()

    @classmethod
    async def open(cls, url: URL | str) -> Self:
        """Connect; the name of the host is looked up in a thread, since libpq would block."""
        connecting = asyncio.ensure_future(
            asyncio.to_thread(pq.PGconn.connect, _for_replication(conninfo_of(url)))
        )
        try:
            pgconn = await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_finish)
            raise
        if pgconn.status != pq.ConnStatus.OK:
            message = pgconn.get_error_message().strip()
            pgconn.finish()
            raise UnavailableError(f"The WAL cannot be read: {message}.")
        pgconn.nonblocking = 1
        return cls(pgconn)

    def close(self) -> None:
        """Close the connection."""
        self._pgconn.finish()

    async def command(self, text: str) -> list[dict[str, str]]:
        """Run a command of the replication protocol; return its rows."""
        result = await self._result_of(text)
        names = [(result.fname(place) or b"").decode() for place in range(result.nfields)]
        rows = [
            {
                name: (result.get_value(row, place) or b"").decode()
                for place, name in enumerate(names)
            }
            for row in range(result.ntuples)
        ]
        while await self._result() is not None:
            continue
        return rows

    async def start(self, slot: str, publication: str) -> None:
        """Begin to read a slot, from where it was confirmed."""
        options = f"proto_version '1', publication_names '{publication}', messages 'true'"
        result = await self._result_of(f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({options})")
        if result.status != pq.ExecStatus.COPY_BOTH:
            raise ReplicationError("The server does not send the WAL.")

    async def receive(self, limit: int) -> list[bytes | Keepalive]:
        """Return what has come of the slot; wait for the first, or for `interrupt`."""
        while not self._is_interrupted:
            for _ in range(ATTEMPTS):
                if found := self._available(limit):
                    return found
            await self._readable()
        self._is_interrupted = False
        return []

    def interrupt(self) -> None:
        """Make `receive` return."""
        self._is_interrupted = True
        self._wake.set()

    async def send_status(self, flushed: int) -> None:
        """Tell the server that this connection is alive, and what it need not send again."""
        now = round((time.time() - EPOCH) * 1_000_000)
        written = max(self._received, flushed)
        try:
            self._pgconn.put_copy_data(STATUS.pack(b"r", written, flushed, flushed, now, 0))
            await self._flush()
        except OperationalError as error:
            raise ReplicationError(_message(error)) from error

    def _available(self, limit: int) -> list[bytes | Keepalive]:
        """Return all that has come: libpq reads as much of it at a time as its buffer holds."""
        found: list[bytes | Keepalive] = []
        try:
            while len(found) < limit and (more := self._buffered(limit - len(found))):
                found += more
        except OperationalError as error:
            raise ReplicationError(_message(error)) from error
        return found

    def _buffered(self, limit: int) -> list[bytes | Keepalive]:
        pgconn = self._pgconn
        found: list[bytes | Keepalive] = []
        pgconn.consume_input()
        while len(found) < limit:
            size, data = pgconn.get_copy_data(1)
            if size == 0:
                break
            if size < 0:
                raise self._end()
            found.append(self._unpacked(bytes(data)))
        return found

    def _unpacked(self, data: bytes) -> bytes | Keepalive:
        if data[0] == KEEPALIVE:
            end, _, wants_reply = KEEPALIVE_HEADER.unpack_from(data, 1)
            self._received = max(self._received, end)
            return Keepalive(end, bool(wants_reply))
        if data[0] != WAL_DATA:
            raise ReplicationError(f"The server sends messages of an unknown kind: {data[:1]!r}.")
        _, end, _ = WAL_DATA_HEADER.unpack_from(data, 1)
        self._received = max(self._received, end)
        return data[1 + WAL_DATA_HEADER.size :]

    def _end(self) -> ReplicationError:
        result = self._pgconn.get_result()
        reason = "the server has ended the stream" if result is None else _reason(result)
        return ReplicationError(f"The WAL cannot be read on: {reason}.")

    async def _result_of(self, text: str) -> pq.abc.PGresult:
        try:
            self._pgconn.send_query(text.encode())
            await self._flush()
            result = await self._result()
        except OperationalError as error:
            raise ReplicationError(_message(error)) from error
        if result is None:
            raise ReplicationError("The server does not answer.")
        if result.status == pq.ExecStatus.FATAL_ERROR:
            state = (result.error_field(pq.DiagnosticField.SQLSTATE) or b"").decode()
            kind = SlotInUseError if state == IN_USE else ReplicationError
            raise kind(f"PostgreSQL says: {_reason(result)}.")
        return result

    async def _result(self) -> pq.abc.PGresult | None:
        self._pgconn.consume_input()
        while self._pgconn.is_busy():
            await self._readable()
            self._pgconn.consume_input()
        return self._pgconn.get_result()

    async def _readable(self) -> None:
        """Wait until the server has sent something, or for `interrupt`."""
        loop, number = asyncio.get_running_loop(), self._pgconn.socket
        self._wake.clear()
        if self._is_interrupted:
            return
        loop.add_reader(number, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            loop.remove_reader(number)

    async def _flush(self) -> None:
        loop, number = asyncio.get_running_loop(), self._pgconn.socket
        while self._pgconn.flush():
            writable = asyncio.Event()
            loop.add_writer(number, writable.set)
            try:
                await writable.wait()
            finally:
                loop.remove_writer(number)


def _finish(connecting: asyncio.Future[pq.abc.PGconn]) -> None:
    """Close a connection that came too late."""
    if not connecting.cancelled() and connecting.exception() is None:
        connecting.result().finish()


def _reason(result: pq.abc.PGresult) -> str:
    text = result.error_field(pq.DiagnosticField.MESSAGE_PRIMARY)
    return text.decode("utf-8", "replace") if text else result.get_error_message().strip()


def _message(error: OperationalError) -> str:
    return f"The connection to the WAL is lost: {str(error).strip()}."
