"""Checks of what is installed: schema `rowsignal`, triggers and rights."""

from collections.abc import AsyncIterator

from rowsignal.doctor.findings import CheckContext, Finding, Severity
from rowsignal.identifiers import quote
from rowsignal.postgres.schema import schema_status
from rowsignal.triggers import TriggerState, missing_rights, trigger_status

PURPOSES = {
    "wait": "which every reader needs",
    "watch": "which reading the change log needs",
    "serve": "which pruning the change log needs",
}
SEVERITIES = {"wait": Severity.ERROR, "watch": Severity.WARNING, "serve": Severity.NOTE}
NO_TABLE = "There is no such table."  # as triggers.health says it


async def schema(context: CheckContext) -> AsyncIterator[Finding]:
    """Check the version and the owner of schema `rowsignal`."""
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


async def triggers(context: CheckContext) -> AsyncIterator[Finding]:
    """Check the triggers of all tables that should have some."""
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


async def rights(context: CheckContext) -> AsyncIterator[Finding]:
    """Check that every role may call what triggers call."""
    for row in await context.ask("advisory_privileges"):
        message = f"Not every role may call {row['function']}: writes of watched tables fail."
        fix = f"GRANT EXECUTE ON FUNCTION pg_catalog.{row['function']} TO PUBLIC;"
        yield Finding(Severity.ERROR, "rights", message, fix)


async def rights_of(context: CheckContext, role: str) -> list[Finding]:
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


async def subscriptions(context: CheckContext) -> AsyncIterator[Finding]:
    """Check for tables that logical replication writes."""
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
