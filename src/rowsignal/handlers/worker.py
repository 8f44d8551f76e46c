"""The worker of one process: leases on partitions, and a runner for each."""

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import uuid4

import asyncpg

from rowsignal.change_log.reader import explained
from rowsignal.change_log.tail import LogTail
from rowsignal.exceptions import ConsumerError, SchemaVersionError
from rowsignal.handlers.administration import ConsumerLag, consumer_lag
from rowsignal.handlers.consumer import Feed
from rowsignal.handlers.leases import Leases, LeaseTable, Partition
from rowsignal.handlers.places import place_of
from rowsignal.handlers.runner import HandlerContext, Runner
from rowsignal.listener import OUTAGES
from rowsignal.postgres.connections import driver_of
from rowsignal.postgres.errors import message, sqlstate
from rowsignal.postgres.statements import query

logger = logging.getLogger("rowsignal.handlers")

RENEWALS = 3.0  # per lease: two may fail before it is lost
SOONEST = 0.1
LAG_INTERVAL = 30.0
OTHER_PARTITIONS = "RS003"


@dataclass(frozen=True, slots=True)
class _Running:
    runner: Runner
    task: asyncio.Task[None]


class Worker:
    """Holds leases and runs their partitions."""

    def __init__(self, context: HandlerContext, feeds: Sequence[Feed], *, lease: float) -> None:
        self._context = context
        self._feeds = {feed.consumer.name: feed for feed in feeds}
        label = f"{socket.gethostname()}:{os.getpid()}"
        names = list(self._feeds)
        self._leases = LeaseTable(context.engine, uuid4(), label, names, lease)
        self._interval = lease / RENEWALS
        self._running: dict[tuple[str, int], _Running] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._ended = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Create the consumers, take free partitions, and start their runners."""
        for feed in self._feeds.values():
            await self._create(feed)
        self._apply(await self._leases.renew())
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._keep_leases(), name="rowsignal leases"),
            loop.create_task(self._report_lag(), name="rowsignal consumer lag"),
        ]

    async def stop(self, grace: float) -> None:
        """End after the present changes, or cancel them after `grace` seconds."""
        for task in self._tasks:
            task.cancel()
        for running in self._running.values():
            running.runner.stop()
        tasks = [running.task for running in self._running.values()] + list(self._ending)
        if tasks:
            _, pending = await asyncio.wait(tasks, timeout=grace)
            for task in pending:
                task.cancel()
        await asyncio.gather(*tasks, *self._tasks, return_exceptions=True)
        try:
            # Released, not left to expire: another worker takes over at once.
            for running in self._running.values():
                await self._leases.release(running.runner.partition)
            await self._leases.leave()
        except OUTAGES as error:
            logger.warning("leases of consumers could not be released and will expire: %s", error)
        finally:
            await self._leases.close()
            await LogTail.of(self._context.engine).close_unused()

    async def _create(self, feed: Feed) -> None:
        consumer = feed.consumer
        position = await LogTail.of(self._context.engine).log.position()
        async with self._context.side_engine.connect() as connection:
            driver = await driver_of(connection)
            async with (
                driver.transaction()
            ):  # behind a pooler a statement must be part of a transaction
                if not await driver.fetchval(query("consumer_schema")):
                    raise SchemaVersionError(
                        "Schema rowsignal is too old for consumers: install_triggers(...) of this"
                        " version brings it up to date."
                    )
                seen = None if consumer.start != "now" else (await place_of(driver, position)).seen
                arguments = (consumer.name, consumer.partitions, feed.names, seen)
                await _create_consumer(driver, arguments)

    async def _keep_leases(self) -> None:
        """Renew leases until cancelled; take partitions that other workers release."""
        said = ""
        delay = self._interval
        while True:
            self._ended.clear()
            with suppress(TimeoutError):  # the usual case: no runner has ended meanwhile
                async with asyncio.timeout(delay):
                    await self._ended.wait()
            try:
                leases = await self._leases.renew()
                self._apply(leases)
                said, delay = "", self._delay(leases)
            except Exception as error:  # noqa: BLE001 -- the task must not end unseen
                delay = self._interval
                # Each error once: an outage may last for hours.
                if said != str(error):
                    said = str(error)
                    _warn("leases of consumers cannot be renewed; trying again", error)

    def _delay(self, leases: Leases) -> float:
        if leases.wait is None:
            return self._interval
        return min(self._interval, max(leases.wait, SOONEST))

    def _apply(self, leases: Leases) -> None:
        """Start runners for new leases, stop runners whose lease goes to another worker."""
        held = {(it.partition.consumer, it.partition.number): it for it in leases.held}
        for key, running in tuple(self._running.items()):
            lease = held.get(key)
            # Another generation: the lease was lost and taken anew, and the old runner cannot
            # commit.
            if lease is None or lease.partition != running.runner.partition:
                self._abandon(key)
            # Another worker has come: the partition is passed on after the present change.
            elif lease.is_surplus:
                running.runner.stop()
        for key, lease in held.items():
            if key not in self._running and not lease.is_surplus:
                self._begin(lease.partition)
            if lease.is_due and key in self._running:
                self._running[key].runner.retry_letters()

    def _begin(self, partition: Partition) -> None:
        runner = Runner(self._context, self._feeds[partition.consumer], partition)
        name = f"rowsignal consumer {partition}"
        task = asyncio.get_running_loop().create_task(self._run(runner), name=name)
        self._running[partition.consumer, partition.number] = _Running(runner, task)

    def _abandon(self, key: tuple[str, int]) -> None:
        """Cancel a runner whose lease is lost; it cannot commit any more."""
        task = self._running.pop(key).task
        # The event loop keeps only a weak reference to a task.
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)
        task.cancel()

    async def _run(self, runner: Runner) -> None:
        """Run a partition; release it when the runner has ended."""
        await runner.run()
        key = (runner.partition.consumer, runner.partition.number)
        running = self._running.get(key)
        # The lease was lost: it is not this worker's to release.
        if running is None or running.runner is not runner:
            return
        try:
            await self._leases.release(runner.partition)
        except OUTAGES as error:
            logger.warning(
                "the lease of %s could not be released and will expire: %s", runner.partition, error
            )
        self._running.pop(key, None)
        # Another partition may be due to this worker: renew at once.
        self._ended.set()

    async def _report_lag(self) -> None:
        """Report the lag of the consumers to the hooks in intervals."""
        while True:
            await asyncio.sleep(LAG_INTERVAL)
            try:
                found = await consumer_lag(self._context.side_engine)
                for lag in (it for it in found if it.consumer in self._feeds):
                    self._tell(lag)
            except Exception as error:  # noqa: BLE001 -- as above
                _warn("the lag of consumers cannot be read; trying again", error)

    def _tell(self, lag: ConsumerLag) -> None:
        self._context.hooks.consumer_lagged(
            consumer=lag.consumer,
            partition=lag.partition,
            changes=lag.lag_changes,
            seconds=lag.lag_seconds,
            retention_used=lag.retention_used or 0.0,
        )


def _warn(sentence: str, error: Exception) -> None:
    """Log an error, with a traceback unless it is an outage."""
    is_outage = isinstance(error, OUTAGES)
    logger.warning("%s: %s", sentence, error, exc_info=None if is_outage else error)


async def _create_consumer(driver: asyncpg.Connection, arguments: tuple[object, ...]) -> None:
    try:
        await driver.execute(query("consumer_create"), *arguments)
    except asyncpg.PostgresError as error:
        if sqlstate(error) != OTHER_PARTITIONS:
            raise explained(error) from error
        raise ConsumerError(
            f"{message(error)} Use a multiple, or let it handle what is logged and then forget"
            f" it: `rowsignal consumers drop {arguments[0]}`."
        ) from error
