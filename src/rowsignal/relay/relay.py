"""`Relay`: drains the change log of one database into one JetStream stream, each change once."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Literal, NoReturn, get_args

from nats.aio.client import Client
from sqlalchemy import text
from sqlalchemy.exc import NoSuchTableError
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.changes import Reset
from rowsignal.exceptions import missing_extra
from rowsignal.hooks import Hooks, guarded
from rowsignal.identifiers import QualifiedName
from rowsignal.listener import Listener, reconnect_delays
from rowsignal.nats.connection import OUTAGES, connected
from rowsignal.postgres.errors import describe, is_outage
from rowsignal.relay.captures import SECURED, CaptureFeed, LogCapture, RelayCapture
from rowsignal.relay.descriptions import Descriptions, describe_tables
from rowsignal.relay.jetstream import JetStreamPublisher, StreamSettings
from rowsignal.relay.messages import POSITION, TOO_LARGE, UNPLACED, Message, MessageWriter
from rowsignal.relay.pipeline import Pipeline
from rowsignal.relay.presence import Presence, StandbyRequiredError
from rowsignal.relay.publisher import FencedError, Head, Publisher
from rowsignal.relay.tables import Carried, carried_tables, columns_of
from rowsignal.relay.timings import RelayTimings
from rowsignal.streams.loader import Loaded, RowChange, TableReset
from rowsignal.streams.sources import SourceBatch

logger = logging.getLogger("rowsignal.relay")

CaptureName = Literal["log", "wal"]
Describe = Callable[[Mapping[QualifiedName, tuple[str, ...]]], Awaitable[None]]

LAG_KEPT = 2.0
LONGEST_DELAY = 1.0  # between attempts: NATS and PostgreSQL are asked for one message each
CIRCULAR = (
    "The relay's engine has a Listener whose hints are this relay's own messages: give the relay"
    " an engine of its own."
)


class Relay:
    """Publishes every change of some logged tables, exactly once and in order, for any number.

        await Relay(engine, "nats://localhost:4222").run()

    `nats` is a URL, several with commas between them, or a connected client. `tables` are models
    or names, or a mapping of them to the columns that are carried; without, all tables that have a
    log. The stream is made with the settings `stream` where there is none.

    `capture="wal"` reads the changes of published tables from the WAL instead of the change log
    (`install_wal_capture`); `replication_url` is an address of PostgreSQL itself, where `engine`
    has that of a pooler.

    Any number of relays may run: one is at work, the others stand by. What a crash of any of them
    leaves undecided is decided by the stream, which takes a message only at its very place.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        nats: str | Client,
        *,
        tables: Carried = None,
        stream: StreamSettings | None = None,
        timings: RelayTimings | None = None,
        hooks: Hooks | None = None,
        capture: CaptureName = "log",
        replication_url: str | None = None,
    ) -> None:
        if capture not in get_args(CaptureName):
            raise ValueError(f"capture is 'log' or 'wal', not {capture!r}.")
        self._kind = capture
        self._replication_url = replication_url
        self._engine = engine
        self._nats = nats
        self._tables = tables
        self._stream = stream
        self._timings = timings or RelayTimings()
        self._hooks = guarded(hooks or Hooks())

    async def run(self) -> NoReturn:
        """Relay until cancelled, whatever goes away meanwhile; raise what trying cannot mend."""
        if Listener.of(self._engine).is_relayed:
            raise ValueError(CIRCULAR)
        async with AsyncExitStack() as stack:
            capture, database = await self._captured(), await self._name()
            client = await stack.enter_async_context(connected(self._nats, "rowsignal relay"))
            presence = Presence(client, database, self._timings)
            stack.push_async_callback(presence.close)
            await presence.open()
            publisher = JetStreamPublisher(client, database, self._stream)
            stack.push_async_callback(publisher.close)
            term = Term(capture, publisher, database, self._timings, self._hooks)
            replicas = (self._stream or StreamSettings()).replicas
            term.describe = partial(self._describe, Descriptions(client, database), replicas)
            await self._keep_going(term, presence)

    async def _captured(self) -> RelayCapture:
        if self._kind == "log":
            return LogCapture(self._engine, await carried_tables(self._engine, self._tables))
        try:
            from rowsignal.relay.wal.capture import WalCapture  # noqa: PLC0415 -- an optional extra
        except ModuleNotFoundError as error:
            raise missing_extra("Capture from the WAL", "psycopg", error) from error
        return await WalCapture.of(self._engine, self._tables, self._replication_url)

    async def _describe(
        self,
        descriptions: Descriptions,
        replicas: int,
        columns: Mapping[QualifiedName, tuple[str, ...]],
    ) -> None:
        """Tell gateways what the tables are like."""
        try:
            found = await describe_tables(self._engine, columns, capture=self._kind)
        except NoSuchTableError as error:  # dropped just now, which the catalogue will tell
            logger.warning("a table cannot be described: %s", describe(error))
            return
        await descriptions.store(found.values(), replicas)

    async def _name(self) -> str:
        async with self._engine.connect() as connection:
            return str(await connection.scalar(text("SELECT pg_catalog.current_database()")))

    async def _keep_going(self, term: "Term", presence: Presence) -> NoReturn:
        delays = reconnect_delays()
        while True:
            await presence.silence()
            began = time.monotonic()
            try:
                await term.run(presence)
            except StandbyRequiredError:
                logger.info("another relay is at work; this one stands by")
            except FencedError:
                logger.info("another relay has published; going on from the end of the stream")
            except Exception as error:
                if not isinstance(error, OUTAGES) and not is_outage(error):
                    raise
                logger.warning("the relay cannot go on just now: %s", describe(error))
                self._hooks.task_restarted(task="relay", reason=type(error).__name__)
                if time.monotonic() - began > LONGEST_DELAY:
                    delays = reconnect_delays()
                await asyncio.sleep(min(next(delays), LONGEST_DELAY))
            finally:
                self._hooks.relay_active(database=term.database, active=False)


class Term:
    """The work of a relay from the end of the stream on, until something keeps it from going on."""

    def __init__(
        self,
        capture: RelayCapture,
        publisher: Publisher,
        database: str,
        timings: RelayTimings,
        hooks: Hooks,
    ) -> None:
        self.database = database
        self._capture = capture
        self._publisher = publisher
        self._timings = timings
        self._hooks = hooks
        self._writer = MessageWriter(database)
        self._reached = ""
        self._stored_at = 0.0
        self._lag = LagGauge()
        self._described: Mapping[QualifiedName, tuple[str, ...]] = {}
        self.describe: Describe | None = None

    async def run(self, presence: Presence) -> NoReturn:
        """Publish what comes after the stream's last message; raise what ends the term."""
        async with AsyncExitStack() as stack:
            feed, head, lost = await self._capture.open(stack, self._publisher.head)
            self._reached = head.position or feed.position or ""
            pipeline = Pipeline(
                self._publisher,
                head,
                timeout=self._timings.acknowledgement,
                report=partial(self._report, feed),
            )
            stack.callback(pipeline.close)
            if lost is not None:
                await self._begin(feed, pipeline, head, lost)
            for fault in feed.faults():
                await self._send_reset(pipeline, fault)
            await self._follow_columns(feed)
            self._hooks.relay_active(database=self.database, active=True)
            logger.info("relaying %s after message %d", self.database, head.sequence)
            await run_together(
                presence.announce(self._lag.now),
                pipeline.collect(),
                feed.attend(),
                self._publish(feed, pipeline),
            )

    async def _begin(self, feed: CaptureFeed, pipeline: Pipeline, head: Head, reason: str) -> None:
        """Say where an empty stream begins, or that what came before is not known."""
        self._reached = feed.position or ""
        if head.sequence:
            await self._send_reset(pipeline, Reset(reason=reason))
        else:
            await pipeline.send(self._writer.checkpoint(self._reached, 0))
        self._stored_at = time.monotonic()

    async def _publish(self, feed: CaptureFeed, pipeline: Pipeline) -> NoReturn:
        while True:
            batch = await feed.next()
            columns = await self._follow_columns(feed)
            wanted = {name: frozenset(names) for name, names in columns.items()}
            loaded = await feed.load(batch, wanted)
            for number, it in enumerate(loaded, 1):
                await self._send(feed, pipeline, it, columns, is_last=number == len(loaded))
            await self._finish(feed, batch, pipeline, is_empty=not loaded)

    async def _follow_columns(self, feed: CaptureFeed) -> dict[QualifiedName, tuple[str, ...]]:
        """Return the columns that are carried now; where they have changed, tell gateways."""
        columns = {
            name: columns_of(shape, self._capture.tables[name])
            for name, shape in feed.shapes.items()
        }
        if columns != self._described and self.describe is not None:
            await self.describe(columns)
        self._described = columns
        return columns

    async def _finish(
        self, feed: CaptureFeed, batch: SourceBatch, pipeline: Pipeline, *, is_empty: bool
    ) -> None:
        now = time.monotonic()
        if batch.position is None:
            return
        if not is_empty:
            self._stored_at = now
        elif feed.wants_checkpoint or now - self._stored_at >= self._timings.checkpoint:
            self._stored_at = now
            await pipeline.send(self._writer.checkpoint(batch.position, pipeline.sequence))
        self._reached = batch.position

    async def _send(
        self,
        feed: CaptureFeed,
        pipeline: Pipeline,
        it: Loaded | Reset,
        columns: dict[QualifiedName, tuple[str, ...]],
        *,
        is_last: bool,
    ) -> None:
        if not isinstance(it, RowChange):
            await self._send_reset(pipeline, it)
            return
        reason = self._unfit(feed, it)
        message = None if reason else self._written(it, columns[it.table])
        if message is None or message.size > pipeline.max_bytes:
            reason = reason or TOO_LARGE.format(".".join(it.table))
            reset = TableReset(reason=reason, position=it.change.position, table=it.table)
            await self._send_reset(pipeline, reset)
            return
        self._reached = message.id
        await pipeline.send(message, is_last=is_last)

    def _written(self, it: RowChange, columns: tuple[str, ...]) -> Message | None:
        try:
            return self._writer.change(it, it.change.position or "", columns)
        except (ValueError, RecursionError):
            return None

    def _unfit(self, feed: CaptureFeed, it: RowChange) -> str | None:
        """Return why a change cannot be carried, in a sentence."""
        if feed.shapes[it.table].has_row_security:
            return SECURED.format(".".join(it.table))
        return None if it.change.position else UNPLACED.format(".".join(it.table))

    async def _send_reset(self, pipeline: Pipeline, reset: Reset) -> None:
        self._reached = reset.position or self._reached
        await pipeline.send(self._writer.reset(reset, self._reached, pipeline.sequence))
        table = ".".join(reset.table) if isinstance(reset, TableReset) else self.database
        self._hooks.reset(table=table, reason=reset.reason)
        logger.warning("a reset is relayed: %s", reset.reason)

    def _report(self, feed: CaptureFeed, count: int, last: Message) -> None:
        feed.stored(last.headers[POSITION])
        captured_at = last.captured_at
        lag = 0.0 if captured_at is None else max(time.time() - captured_at.timestamp(), 0.0)
        self._lag.note(lag)
        self._hooks.relayed(database=self.database, count=count, lag=lag)


class LagGauge:
    """The lag of a relay: that of its last message, while messages arrive."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._noted_at = 0.0

    def note(self, seconds: float) -> None:
        """Take the lag of a message that has been stored."""
        self._seconds, self._noted_at = seconds, time.monotonic()

    def now(self) -> float:
        """Return the lag; 0 once nothing is left to be stored."""
        return self._seconds if time.monotonic() - self._noted_at < LAG_KEPT else 0.0


async def run_together(*works: Coroutine[Any, Any, NoReturn]) -> NoReturn:
    """Run what never ends until one of it fails; end the others and raise that error."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await next(iter(done))
        raise RuntimeError("what never ends has ended")
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
