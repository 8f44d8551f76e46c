"""Checks of the server: its version, its limits, and what others hold."""

import asyncio
from collections.abc import AsyncIterator

from sqlalchemy import RowMapping

from rowsignal.doctor.findings import CheckContext, Finding, Severity
from rowsignal.payload import LOCK_CLASS, LOG_BUCKET
from rowsignal.triggers.catalog import TableFacts

OLDEST_SERVER, LISTEN_BUG = 140000, range(170000, 170007)
LOCKS_NOTED, LOCKS_FULL = 0.5, 0.8
QUEUE_POLLED, QUEUE_QUIET = 0.4, 0.5  # listeners stop counting on it; triggers stop notifying
SECOND_READ = 0.05


async def server(context: CheckContext) -> AsyncIterator[Finding]:
    """Check the version, and that it is a primary."""
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


async def replica_roles(context: CheckContext) -> AsyncIterator[Finding]:
    """Check for roles whose writes fire no trigger."""
    for row in await context.ask("replica_roles"):
        message = f"{row['role']} writes with session_replication_role=replica: no trigger fires."
        yield Finding(Severity.WARNING, "roles", message, row["fix"])


async def locks(context: CheckContext) -> AsyncIterator[Finding]:
    """Check how full the lock table is."""
    usage = context.server["lock_table_usage"]
    if usage <= LOCKS_NOTED:
        return
    severity = Severity.ERROR if usage > LOCKS_FULL else Severity.WARNING
    message = f"The lock table is {usage:.0%} full; when it is full, writes fail."
    yield Finding(severity, "locks", message, "Raise max_locks_per_transaction, and restart.")


async def queue(context: CheckContext) -> AsyncIterator[Finding]:
    """Check how full the notification queue is."""
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


async def commits(context: CheckContext) -> AsyncIterator[Finding]:
    """Check for settings under which a commit that notifies fails or waits."""
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


async def lock_holders(context: CheckContext) -> AsyncIterator[Finding]:
    """Check for sessions that hold our advisory locks against listeners."""
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
