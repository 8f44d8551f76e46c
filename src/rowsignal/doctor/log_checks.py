"""Checks of the change log: its order, its size, and its consumers."""

from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy import text

from rowsignal.doctor.findings import CheckContext, Finding, Severity
from rowsignal.postgres.statements import query

RETENTION_NOTED = 0.5


async def order(context: CheckContext) -> AsyncIterator[Finding]:
    """Check for tables whose changes may be logged out of order."""
    for row in await context.ask("reordering", context.logged):
        message = f"Changes of one row may be logged inner-first, because of {row['because']}."
        yield Finding(Severity.NOTE, row["table"], message)


async def log(context: CheckContext) -> AsyncIterator[Finding]:
    """Check that the log is pruned."""
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


async def consumers(context: CheckContext) -> AsyncIterator[Finding]:
    """Check how far behind named consumers are."""
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


async def slots(context: CheckContext) -> AsyncIterator[Finding]:
    """Check how far behind the replication slots of relays are."""
    for row in await context.ask("wal_slots"):
        subject = f"slot {row['name']}"
        behind = f"The relay is {row['lag']} of WAL behind"
        if row["wal_status"] == "lost":
            message = "WAL that was not read in time is gone: readers are told of a reset."
            fix = "Start `rowsignal relay --capture wal`; raise max_slot_wal_keep_size."
            yield Finding(Severity.ERROR, subject, message, fix)
        elif row["wal_status"] == "unreserved":
            message = f"{behind}: the next checkpoint may remove some of it."
            fix = "Start `rowsignal relay --capture wal` now; raise max_slot_wal_keep_size."
            yield Finding(Severity.ERROR, subject, message, fix)
        elif not row["is_active"]:
            message = f"No relay reads it; it keeps {row['lag']} of WAL, and more with each write."
            fix = "Start `rowsignal relay --capture wal`, or `rowsignal relay uninstall`."
            yield Finding(Severity.WARNING, subject, message, fix)
        elif row["wal_status"] == "extended":
            message = f"{behind}, more than max_wal_size: the disk fills until it has caught up."
            fix = "Look at the relay and at NATS; set max_slot_wal_keep_size."
            yield Finding(Severity.WARNING, subject, message, fix)
        else:
            yield Finding(Severity.OK, subject, f"{behind}.")


def _age(seconds: Any) -> str:
    if seconds is None:
        return "not there, so nothing is"
    hours = float(seconds) / 3600
    return f"{hours / 24:.1f} days" if hours > 48 else f"{hours:.1f} hours"
