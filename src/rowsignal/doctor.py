"""What keeps changes from arriving, or could make writes fail, and the command that mends it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import RowMapping, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.listener import OUTAGES
from rowsignal.listener.connection import Wire
from rowsignal.payload import LOCK_CLASS, LOG_BUCKET
from rowsignal.postgres.connections import OwnConnection, beside
from rowsignal.postgres.schema import schema_status
from rowsignal.postgres.statements import query
from rowsignal.triggers import TriggerState, trigger_status
from rowsignal.triggers.catalog import TableFacts, read_facts

OLDEST_SERVER, LISTEN_BUG = 140000, range(170000, 170007)
LOCKS_NOTED, LOCKS_FULL = 0.5, 0.8
QUEUE_POLLED, QUEUE_QUIET = 0.4, 0.5  # listeners stop counting on it; triggers stop notifying
RETENTION_NOTED = 0.5
SECOND_LOOK = 0.05
ANSWER = 3.0
NO_TABLE = "There is no such table."  # as triggers.health says it


class Severity(StrEnum):
    """How bad a finding is: an error keeps changes from arriving, or writes from working."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at; `cure` is the command or setting that mends it."""

    severity: Severity
    subject: str
    message: str
    cure: str | None = None


@dataclass(frozen=True, slots=True)
class Patient:
    """What the checks look at."""

    connection: AsyncConnection
    server: RowMapping
    tables: Sequence[TableFacts]
    what: Any
    has_listen_url: bool

    @property
    def logged(self) -> list[int]:
        """Return the oids of tables with a log."""
        members = (member for table in self.tables for member in table.members)
        return [member.oid for member in members if any(it.kind == "log" for it in member.triggers)]

    async def ask(self, name: str, *arguments: object) -> Sequence[RowMapping]:
        """Return the rows that a query of the catalogue gives."""
        result = await self.connection.exec_driver_sql(query(name), arguments)
        return result.mappings().all()


async def diagnose(
    engine: AsyncEngine, what: Any = None, *, listen_url: str | None = None
) -> list[Finding]:
    """Look a database over; return the findings, in the order in which things build on each other.

    `what` is what `trigger_status` takes; without it all tables that carry triggers are looked at.
    `listen_url` is the address given to `Listener`, if any. Changes nothing: it connects, reads
    the catalogue, and sends one notification to itself. Raises what the first connection raises.
    """
    findings: list[Finding] = []
    async with _connection(engine) as connection:
        server = (await connection.exec_driver_sql(query("server"))).mappings().one()
        tables = await connection.run_sync(lambda sync: read_facts(sync, [], with_strays=True))
        patient = Patient(connection, server, tables, what, listen_url is not None)
        for check in CHECKS:
            findings += await _examined(check, patient)
    findings.append(await _listening(engine, listen_url))
    return findings


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:  # a check that is refused must not end the others
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


async def _examined(check: "Check", patient: Patient) -> list[Finding]:
    try:
        return [finding async for finding in check(patient)]
    except DBAPIError as error:
        subject = check.__name__.strip("_").replace("_", " ")
        cause = getattr(error.orig, "__cause__", None) or error.orig
        return [Finding(Severity.NOTE, subject, f"This could not be looked at: {cause}.")]


async def _server(patient: Patient) -> AsyncIterator[Finding]:
    version, name = patient.server["version"], patient.server["version_name"]
    if version < OLDEST_SERVER:
        message = f"PostgreSQL {name} is too old."
        yield Finding(Severity.ERROR, "server", message, "Upgrade PostgreSQL to 14 or newer.")
    elif version in LISTEN_BUG:
        message = f"PostgreSQL {name} has a bug that can break LISTEN until the listener restarts."
        yield Finding(Severity.WARNING, "server", message, "Upgrade PostgreSQL to 17.7 or newer.")
    else:
        yield Finding(Severity.OK, "server", f"PostgreSQL {name}.")
    if patient.server["is_standby"]:
        severity = Severity.NOTE if patient.has_listen_url else Severity.ERROR
        cure = None if patient.has_listen_url else "Give the primary as --listen-url."
        message = "This is a standby: LISTEN and the change log need the primary."
        yield Finding(severity, "server", message, cure)


async def _schema(patient: Patient) -> AsyncIterator[Finding]:
    found = await schema_status(patient.connection)
    if found.is_current:
        yield Finding(Severity.OK, "schema", f"Schema rowsignal is at version {found.version}.")
    elif not found.version:
        message = "There is no schema rowsignal, so every wait polls."
        yield Finding(Severity.WARNING, "schema", message, "rowsignal install TABLE")
    elif found.version > found.wanted:
        message = (
            f"Schema rowsignal has version {found.version}; this library knows {found.wanted}."
        )
        yield Finding(Severity.ERROR, "schema", message, "Upgrade the library.")
    else:
        message = f"Schema rowsignal has version {found.version}, not {found.wanted}."
        yield Finding(Severity.WARNING, "schema", message, "rowsignal install TABLE")


async def _triggers(patient: Patient) -> AsyncIterator[Finding]:
    found = await trigger_status(patient.connection, patient.what)
    severities = {TriggerState.MISSING: Severity.ERROR, TriggerState.DISABLED: Severity.ERROR}
    severities[TriggerState.ORPHANED] = Severity.NOTE
    for one in found:
        if one.state is TriggerState.INSTALLED:
            continue
        name = f"{one.schema}.{one.table}" if one.schema else one.table
        verb = "uninstall" if one.state is TriggerState.ORPHANED else "install"
        flag = " --log" if one.kind == "log" and verb == "install" else ""
        cure = f"rowsignal {verb} {name}{flag}"
        if one.problem == NO_TABLE:
            cure = f"Create the table, or correct the name; then: {cure}"
        severity = severities.get(one.state, Severity.WARNING)
        yield Finding(severity, name, f"Triggers {one.state}. {one.problem or ''}".strip(), cure)
    good = sum(one.state is TriggerState.INSTALLED for one in found)
    if good:
        yield Finding(Severity.OK, "triggers", f"In order on {good} of {len(found)} tables.")
    elif not found:
        message = "No table carries triggers, so every wait polls."
        yield Finding(Severity.NOTE, "triggers", message, "rowsignal install TABLE")


async def _rights(patient: Patient) -> AsyncIterator[Finding]:
    for row in await patient.ask("advisory_privileges"):
        message = f"Not everybody may call {row['function']}: writes of watched tables fail."
        cure = f"GRANT EXECUTE ON FUNCTION pg_catalog.{row['function']} TO PUBLIC;"
        yield Finding(Severity.ERROR, "rights", message, cure)


async def _replica_roles(patient: Patient) -> AsyncIterator[Finding]:
    for row in await patient.ask("replica_roles"):
        message = f"{row['role']} writes with session_replication_role=replica: no trigger fires."
        yield Finding(Severity.WARNING, "roles", message, row["cure"])


async def _subscriptions(patient: Patient) -> AsyncIterator[Finding]:
    for row in await patient.ask("subscribed"):
        table = row["table"]
        outcome = "is not logged" if row["is_logged"] else "wakes nobody"
        message = (
            f"Logical replication writes this table (subscription {row['subscriptions']}), and what"
            f" it writes {outcome}."
        )
        cure = f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER rowsignal_hint;"
        if row["is_logged"]:
            cure = f"Follow the log on the publisher, or: rowsignal install {table}; {cure}"
        yield Finding(Severity.WARNING, table, message, cure)


async def _locks(patient: Patient) -> AsyncIterator[Finding]:
    usage = patient.server["lock_table_usage"]
    if usage <= LOCKS_NOTED:
        return
    severity = Severity.ERROR if usage > LOCKS_FULL else Severity.WARNING
    message = f"The lock table is {usage:.0%} full; when it is full, writes fail."
    yield Finding(severity, "locks", message, "Raise max_locks_per_transaction, and restart.")


async def _queue(patient: Patient) -> AsyncIterator[Finding]:
    usage = patient.server["queue_usage"]
    if usage <= QUEUE_POLLED:
        yield Finding(Severity.OK, "queue", f"The notification queue is {usage:.0%} full.")
        return
    severity = Severity.ERROR if usage > QUEUE_QUIET else Severity.WARNING
    message = f"The notification queue is {usage:.0%} full: somebody listens and does not read."
    cure = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE"
        " 'idle in transaction%' ORDER BY xact_start LIMIT 1; the server's log names the process."
    )
    yield Finding(severity, "queue", message, cure)


async def _commits(patient: Patient) -> AsyncIterator[Finding]:
    notifying = [table.name for table in patient.tables if _is_notifying(table)]
    if patient.server["max_prepared"] and notifying:
        message = (
            f"max_prepared_transactions is {patient.server['max_prepared']}, and NOTIFY forbids"
            f" PREPARE TRANSACTION: those that write {', '.join(notifying)} would fail while"
            " somebody waits."
        )
        cure = "If they are written so: rowsignal install TABLE --log --no-notify"
        yield Finding(Severity.WARNING, "two-phase commits", message, cure)
    if patient.server["synchronous_standbys"]:
        message = (
            "synchronous_standby_names is set: transactions that notify wait for the standby one"
            " after another."
        )
        cure = "Log the tables that are written often: rowsignal install TABLE --log"
        yield Finding(Severity.NOTE, "standbys", message, cure)


def _is_notifying(table: TableFacts) -> bool:
    return any(trigger.settings.get("notify", True) for trigger in table.triggers)


async def _squatters(patient: Patient) -> AsyncIterator[Finding]:
    found = {_holder(row): row for row in await patient.ask("squatters", LOCK_CLASS)}
    if not found:
        return
    await asyncio.sleep(SECOND_LOOK)  # a writer's own question is over by then
    for row in await patient.ask("squatters", LOCK_CLASS):
        if _holder(row) not in found:
            continue
        who = f"process {row['pid']} ({row['role']}, {row['application_name'] or 'no name'})"
        what = "the log's" if row["bucket"] == LOG_BUCKET else "some tables'"
        message = f"{who} holds {what} advisory lock exclusively: no listener can ask for changes."
        cure = f"SELECT pg_terminate_backend({row['pid']});"
        yield Finding(Severity.WARNING, "advisory locks", message, cure)


def _holder(row: RowMapping) -> tuple[int, int]:
    return row["bucket"], row["pid"]


async def _order(patient: Patient) -> AsyncIterator[Finding]:
    for row in await patient.ask("reordering", patient.logged):
        message = f"Changes of one row may be logged inner-first, because of {row['because']}."
        yield Finding(Severity.NOTE, row["table"], message)


async def _log(patient: Patient) -> AsyncIterator[Finding]:
    if not patient.logged:
        return
    row = (await patient.connection.execute(text(query("service_log")))).mappings().one()
    size = f"{row['bytes'] / 2**20:.1f} MiB"
    age = await patient.connection.scalar(
        text("SELECT extract(epoch FROM now() - CAST(:at AS timestamptz))"),
        {"at": row["oldest_at"]},
    )
    if row["bytes"] > 2 * row["retention_bytes"] or (age or 0) > 2 * row["retention_seconds"]:
        message = f"The log has {size}, its oldest change is {_age(age)} old: nobody prunes it."
        cure = "Run `rowsignal prune` each minute (cron), or the service; streams prune, too."
        yield Finding(Severity.WARNING, "log", message, cure)
    else:
        message = f"The log has {size}, its oldest change is {_age(age)} old."
        yield Finding(Severity.OK, "log", message)


async def _consumers(patient: Patient) -> AsyncIterator[Finding]:
    (schema,) = await patient.ask("consumer_schema")
    rows = await patient.ask("consumer_lag") if schema["has_consumers"] else []
    for row in rows:
        subject = f"consumer {row['consumer']}"
        if row["problem"] is not None:
            message = f"Partition {row['number']} is told of a reset: {row['problem']}."
            cure = "Run a worker; its on_reset hook catches up. Keep more: rowsignal prune --save"
            yield Finding(Severity.ERROR, subject, message, cure)
        elif (row["retention_used"] or 0) > RETENTION_NOTED:
            message = (
                f"Partition {row['number']} is {row['lag_changes']} changes behind and has used"
                f" {row['retention_used']:.0%} of the retention; at 100% changes are lost to it."
            )
            cure = "Run more workers, or keep more: rowsignal prune --max-age 7d --save"
            yield Finding(Severity.WARNING, subject, message, cure)
        if row["dead_letters"]:
            message = f"Partition {row['number']} has {row['dead_letters']} dead letters."
            cure = f"rowsignal consumers letters {row['consumer']}"
            yield Finding(Severity.WARNING, subject, message, cure)
        if row["lag_changes"] and row["holder"] is None:
            message = f"No worker handles partition {row['number']}: {row['lag_changes']} wait."
            yield Finding(Severity.NOTE, subject, message, "rowsignal work MODULE:CHANGES")
    if rows and not any((row["retention_used"] or 0) > RETENTION_NOTED for row in rows):
        message = f"{len({row['consumer'] for row in rows})} consumers are within the retention."
        yield Finding(Severity.OK, "consumers", message)


def _age(seconds: Any) -> str:
    if seconds is None:
        return "not there, so nothing is"
    hours = float(seconds) / 3600
    return f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours"


async def _listening(engine: AsyncEngine, listen_url: str | None) -> Finding:
    """Send a notification to ourselves, the way a wait would."""
    own = OwnConnection(beside(engine, listen_url))
    listening = beside(engine, listen_url)
    try:
        # not by a Listener: it would take the place of the one that serves this engine's waits
        wire = await Wire.open(listening, lambda *_: None, timeout=ANSWER)
        try:
            await wire.prove(own, timeout=ANSWER)
        finally:
            await wire.close()
    except OUTAGES as error:
        cure = "Give --listen-url (Listener(listen_url=...)) an address of PostgreSQL itself."
        reason = str(error).strip() or type(error).__name__
        message = f"Notifications do not arrive, so every wait polls: {reason}."
        return Finding(Severity.ERROR, "listening", message, cure)
    finally:
        await own.close()
        await listening.dispose()
    return Finding(Severity.OK, "listening", "Notifications arrive.")


Check = Callable[[Patient], AsyncIterator[Finding]]
CHECKS: tuple[Check, ...] = (
    _server,
    _schema,
    _triggers,
    _rights,
    _replica_roles,
    _subscriptions,
    _locks,
    _queue,
    _commits,
    _squatters,
    _order,
    _log,
    _consumers,
)
