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

from rowsignal.exceptions import MissingRightError, SchemaOwnerError
from rowsignal.identifiers import quote
from rowsignal.listener import OUTAGES
from rowsignal.listener.connection import Wire
from rowsignal.payload import LOCK_CLASS, LOG_BUCKET
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import message
from rowsignal.postgres.ownership import check_owner
from rowsignal.postgres.schema import schema_status
from rowsignal.postgres.statements import query
from rowsignal.triggers import TriggerState, missing_rights, trigger_status
from rowsignal.triggers.catalog import TableFacts, read_facts

OLDEST_SERVER, LISTEN_BUG = 140000, range(170000, 170007)
LOCKS_NOTED, LOCKS_FULL = 0.5, 0.8
QUEUE_POLLED, QUEUE_QUIET = 0.4, 0.5  # listeners stop counting on it; triggers stop notifying
RETENTION_NOTED = 0.5
SECOND_READ = 0.05
ANSWER = 3.0
PURPOSES = {
    "wait": "which every reader needs",
    "watch": "which reading the change log needs",
    "serve": "which pruning the change log needs",
}
NO_TABLE = "There is no such table."  # as triggers.health says it


class Severity(StrEnum):
    """How bad a finding is: an error keeps changes from arriving, or writes from working."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    ERROR = "error"


SEVERITIES = {"wait": Severity.ERROR, "watch": Severity.WARNING, "serve": Severity.NOTE}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined; `fix` is the command or setting that mends it."""

    severity: Severity
    subject: str
    message: str
    fix: str | None = None

    @property
    def cure(self) -> str | None:
        """Return `fix`, under its name of 0.1.0 (deprecated)."""
        return self.fix


@dataclass(frozen=True, slots=True)
class CheckContext:
    """What the checks examine."""

    connection: AsyncConnection
    server: RowMapping
    tables: Sequence[TableFacts]
    what: Any
    has_listen_url: bool
    distrust: str | None  # why the schema is not safe to use for the current role

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
    engine: AsyncEngine,
    what: Any = None,
    *,
    listen_url: str | None = None,
    role: str | None = None,
) -> list[Finding]:
    """Examine a database; return the findings, in the order in which things build on each other.

    `what` is what `trigger_status` takes; without it all tables that carry triggers are examined.
    `listen_url` is the address given to `Listener`, if any. `role` names the role of an
    application or of the service, whose rights are compared with what these tables need. Changes
    nothing: it connects, reads the catalogue, and sends one notification to itself. Calls no
    function of a schema `rowsignal` whose owner the current role does not trust. Raises what the
    first connection raises, and `GrantError` when there is no such role.
    """
    findings: list[Finding] = []
    async with _connection(engine) as connection:
        server = (await connection.exec_driver_sql(query("server"))).mappings().one()
        tables = await connection.run_sync(lambda sync: read_facts(sync, [], with_orphans=True))
        context = CheckContext(
            connection=connection,
            server=server,
            tables=tables,
            what=what,
            has_listen_url=listen_url is not None,
            distrust=await _distrust(engine),
        )
        for check in CHECKS:
            findings += await _run_check(check, context)
        if role is not None:
            findings += await _rights_of(context, role)
    findings.append(await _listening(engine, listen_url))
    return findings


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:  # a check that is refused must not end the others
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


async def _run_check(check: "Check", context: CheckContext) -> list[Finding]:
    try:
        return [finding async for finding in check(context)]
    except (DBAPIError, MissingRightError) as error:
        subject = check.__name__.strip("_").replace("_", " ")
        cause = message(error).rstrip(".")
        return [Finding(Severity.NOTE, subject, f"This could not be examined: {cause}.")]


async def _server(context: CheckContext) -> AsyncIterator[Finding]:
    version, name = context.server["version"], context.server["version_name"]
    if version < OLDEST_SERVER:
        message = f"PostgreSQL {name} is too old."
        yield Finding(Severity.ERROR, "server", message, "Upgrade PostgreSQL to 14 or newer.")
    elif version in LISTEN_BUG:
        message = f"PostgreSQL {name} has a bug that can break LISTEN until the listener restarts."
        yield Finding(Severity.WARNING, "server", message, "Upgrade PostgreSQL to 17.7 or newer.")
    else:
        yield Finding(Severity.OK, "server", f"PostgreSQL {name}.")
    if context.server["is_standby"]:
        severity = Severity.NOTE if context.has_listen_url else Severity.ERROR
        fix = None if context.has_listen_url else "Give the primary as --listen-url."
        message = "This is a standby: LISTEN and the change log need the primary."
        yield Finding(severity, "server", message, fix)


async def _distrust(engine: AsyncEngine) -> str | None:
    async with engine.connect() as connection:
        transaction = await connection.execution_options(isolation_level="READ COMMITTED")
        try:
            await transaction.run_sync(check_owner)
        except SchemaOwnerError as error:
            return str(error)
    return None


async def _schema(context: CheckContext) -> AsyncIterator[Finding]:
    found = await schema_status(context.connection)
    if context.distrust is not None:
        fix = "Connect as the owner of schema rowsignal to install and to see the log's state."
        yield Finding(Severity.NOTE, "owner", context.distrust, fix)
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


async def _triggers(context: CheckContext) -> AsyncIterator[Finding]:
    found = await trigger_status(context.connection, context.what)
    severities = {TriggerState.MISSING: Severity.ERROR, TriggerState.DISABLED: Severity.ERROR}
    severities[TriggerState.ORPHANED] = Severity.NOTE
    for one in found:
        name = f"{one.schema}.{one.table}" if one.schema else one.table
        if one.warning:
            yield Finding(Severity.WARNING, name, one.warning)
        if one.state is TriggerState.INSTALLED:
            continue
        verb = "uninstall" if one.state is TriggerState.ORPHANED else "install"
        flag = " --log" if one.kind == "log" and verb == "install" else ""
        fix = f"rowsignal {verb} {name}{flag}"
        if one.problem == NO_TABLE:
            fix = f"Create the table, or correct the name; then: {fix}"
        severity = severities.get(one.state, Severity.WARNING)
        yield Finding(severity, name, f"Triggers {one.state}. {one.problem or ''}".strip(), fix)
    good = sum(one.state is TriggerState.INSTALLED for one in found)
    if good:
        yield Finding(Severity.OK, "triggers", f"In order on {good} of {len(found)} tables.")
    elif not found:
        message = "No table carries triggers, so every wait polls."
        yield Finding(Severity.NOTE, "triggers", message, "rowsignal install TABLE")


async def _rights(context: CheckContext) -> AsyncIterator[Finding]:
    for row in await context.ask("advisory_privileges"):
        message = f"Not every role may call {row['function']}: writes of watched tables fail."
        fix = f"GRANT EXECUTE ON FUNCTION pg_catalog.{row['function']} TO PUBLIC;"
        yield Finding(Severity.ERROR, "rights", message, fix)


async def _rights_of(context: CheckContext, role: str) -> list[Finding]:
    """Compare the rights of a role with what the tables that carry triggers need."""
    subject = f"role {role}"
    tables = [table.oid for table in context.tables if table.oid is not None]
    lacks = await context.connection.run_sync(missing_rights, role, tables)
    if not context.logged:  # without a log there is nothing to watch or to prune
        lacks = [lack for lack in lacks if lack.need == "wait"]
    findings = [
        Finding(
            SEVERITIES[lack.need],
            subject,
            f"Lacks {lack.right}, {PURPOSES[lack.need]}.",
            f"{lack.fix};",
        )
        for lack in lacks
    ]
    if any(lack.need == "watch" for lack in lacks):
        message = "All rights on the log at once: see `rowsignal grant --help`."
        findings.append(
            Finding(Severity.NOTE, subject, message, f"rowsignal grant {quote(role)} --watch")
        )
    return findings or [Finding(Severity.OK, subject, "Has all rights to wait, watch and serve.")]


async def _replica_roles(context: CheckContext) -> AsyncIterator[Finding]:
    for row in await context.ask("replica_roles"):
        message = f"{row['role']} writes with session_replication_role=replica: no trigger fires."
        yield Finding(Severity.WARNING, "roles", message, row["fix"])


async def _subscriptions(context: CheckContext) -> AsyncIterator[Finding]:
    for row in await context.ask("subscribed"):
        table = row["table"]
        outcome = "is not logged" if row["is_logged"] else "wakes no reader"
        message = (
            f"Logical replication writes this table (subscription {row['subscriptions']}), and what"
            f" it writes {outcome}."
        )
        fix = f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER rowsignal_hint;"
        if row["is_logged"]:
            fix = f"Follow the log on the publisher, or: rowsignal install {table}; {fix}"
        yield Finding(Severity.WARNING, table, message, fix)


async def _locks(context: CheckContext) -> AsyncIterator[Finding]:
    usage = context.server["lock_table_usage"]
    if usage <= LOCKS_NOTED:
        return
    severity = Severity.ERROR if usage > LOCKS_FULL else Severity.WARNING
    message = f"The lock table is {usage:.0%} full; when it is full, writes fail."
    yield Finding(severity, "locks", message, "Raise max_locks_per_transaction, and restart.")


async def _queue(context: CheckContext) -> AsyncIterator[Finding]:
    usage = context.server["queue_usage"]
    if usage <= QUEUE_POLLED:
        yield Finding(Severity.OK, "queue", f"The notification queue is {usage:.0%} full.")
        return
    severity = Severity.ERROR if usage > QUEUE_QUIET else Severity.WARNING
    message = f"The notification queue is {usage:.0%} full: a session listens and does not read."
    fix = (
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE"
        " 'idle in transaction%' ORDER BY xact_start LIMIT 1; the server's log names the process."
    )
    yield Finding(severity, "queue", message, fix)


async def _commits(context: CheckContext) -> AsyncIterator[Finding]:
    notifying = [table.name for table in context.tables if _is_notifying(table)]
    if context.server["max_prepared"] and notifying:
        message = (
            f"max_prepared_transactions is {context.server['max_prepared']}, and NOTIFY forbids"
            f" PREPARE TRANSACTION: those that write {', '.join(notifying)} would fail while"
            " a wait is open."
        )
        fix = "If they are written so: rowsignal install TABLE --log --no-notify"
        yield Finding(Severity.WARNING, "two-phase commits", message, fix)
    if context.server["synchronous_standbys"]:
        message = (
            "synchronous_standby_names is set: transactions that notify wait for the standby one"
            " after another."
        )
        fix = "Log the tables that are written often: rowsignal install TABLE --log"
        yield Finding(Severity.NOTE, "standbys", message, fix)


def _is_notifying(table: TableFacts) -> bool:
    return any(trigger.settings.get("notify", True) for trigger in table.triggers)


async def _lock_holders(context: CheckContext) -> AsyncIterator[Finding]:
    found = {_holder(row): row for row in await context.ask("lock_holders", LOCK_CLASS)}
    if not found:
        return
    await asyncio.sleep(SECOND_READ)  # a writer's own question is over by then
    for row in await context.ask("lock_holders", LOCK_CLASS):
        if _holder(row) not in found:
            continue
        who = f"process {row['pid']} ({row['role']}, {row['application_name'] or 'no name'})"
        what = "the log's" if row["bucket"] == LOG_BUCKET else "some tables'"
        message = f"{who} holds {what} advisory lock exclusively: no listener can ask for changes."
        fix = f"SELECT pg_terminate_backend({row['pid']});"
        yield Finding(Severity.WARNING, "advisory locks", message, fix)


def _holder(row: RowMapping) -> tuple[int, int]:
    return row["bucket"], row["pid"]


async def _order(context: CheckContext) -> AsyncIterator[Finding]:
    for row in await context.ask("reordering", context.logged):
        message = f"Changes of one row may be logged inner-first, because of {row['because']}."
        yield Finding(Severity.NOTE, row["table"], message)


async def _log(context: CheckContext) -> AsyncIterator[Finding]:
    if not context.logged or context.distrust is not None:
        return
    row = (await context.connection.execute(text(query("service_log")))).mappings().one()
    size = f"{row['bytes'] / 2**20:.1f} MiB"
    age = await context.connection.scalar(
        text("SELECT extract(epoch FROM now() - CAST(:at AS timestamptz))"),
        {"at": row["oldest_at"]},
    )
    if row["bytes"] > 2 * row["retention_bytes"] or (age or 0) > 2 * row["retention_seconds"]:
        message = f"The log has {size}, its oldest change is {_age(age)} old: nothing prunes it."
        fix = "Run `rowsignal prune` each minute (cron), or the service; streams prune, too."
        yield Finding(Severity.WARNING, "log", message, fix)
    else:
        message = f"The log has {size}, its oldest change is {_age(age)} old."
        yield Finding(Severity.OK, "log", message)


async def _consumers(context: CheckContext) -> AsyncIterator[Finding]:
    (schema,) = await context.ask("consumer_schema")
    rows = await context.ask("consumer_lag") if schema["has_consumers"] else []
    for row in rows:
        subject = f"consumer {row['consumer']}"
        if row["problem"] is not None:
            message = f"Partition {row['number']} is told of a reset: {row['problem']}."
            fix = "Run a worker; its on_reset hook catches up. Keep more: rowsignal prune --save"
            yield Finding(Severity.ERROR, subject, message, fix)
        elif (row["retention_used"] or 0) > RETENTION_NOTED:
            message = (
                f"Partition {row['number']} is {row['lag_changes']} changes behind and has used"
                f" {row['retention_used']:.0%} of the retention; at 100% changes are lost to it."
            )
            fix = "Run more workers, or keep more: rowsignal prune --max-age 7d --save"
            yield Finding(Severity.WARNING, subject, message, fix)
        if row["dead_letters"]:
            message = f"Partition {row['number']} has {row['dead_letters']} dead letters."
            fix = f"rowsignal consumers letters {row['consumer']}"
            yield Finding(Severity.WARNING, subject, message, fix)
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
    side = SideConnection(beside(engine, listen_url))
    listening = beside(engine, listen_url)
    try:
        # not by a Listener: it would take the place of the one that serves this engine's waits
        wire = await Wire.open(listening, lambda *_: None, timeout=ANSWER)
        try:
            await wire.prove(side, timeout=ANSWER)
        finally:
            await wire.close()
    except OUTAGES as error:
        fix = "Give --listen-url (Listener(listen_url=...)) an address of PostgreSQL itself."
        reason = str(error).strip() or type(error).__name__
        message = f"Notifications do not arrive, so every wait polls: {reason}."
        return Finding(Severity.ERROR, "listening", message, fix)
    finally:
        await side.close()
        await listening.dispose()
    return Finding(Severity.OK, "listening", "Notifications arrive.")


Check = Callable[[CheckContext], AsyncIterator[Finding]]
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
    _lock_holders,
    _order,
    _log,
    _consumers,
)
