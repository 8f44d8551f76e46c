"""Run all checks of a database: each finding names a defect and the command that fixes it."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from rowsignal.doctor import log_checks, schema_checks, server_checks
from rowsignal.doctor.findings import Check, CheckContext, Finding, Severity
from rowsignal.exceptions import MissingRightError, SchemaOwnerError
from rowsignal.listener import OUTAGES, Listener, Timings
from rowsignal.listener.connection import Wire
from rowsignal.listener.origins import RelayOrigin
from rowsignal.nats.subjects import is_nats
from rowsignal.postgres.connections import SideConnection, beside
from rowsignal.postgres.errors import message
from rowsignal.postgres.ownership import check_owner
from rowsignal.postgres.statements import query
from rowsignal.triggers.catalog import read_facts

ANSWER = 3.0
CHECKS: tuple[Check, ...] = (
    server_checks.server,
    schema_checks.schema,
    schema_checks.triggers,
    schema_checks.rights,
    server_checks.replica_roles,
    schema_checks.subscriptions,
    server_checks.locks,
    server_checks.queue,
    server_checks.commits,
    server_checks.lock_holders,
    log_checks.order,
    log_checks.log,
    log_checks.consumers,
    log_checks.slots,
)


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
            has_listen_url=listen_url is not None and not is_nats(listen_url),
            distrust=await _distrust(engine),
        )
        for check in CHECKS:
            findings += await _run_check(check, context)
        if role is not None:
            findings += await schema_checks.rights_of(context, role)
    findings.append(await _listening(engine, listen_url))
    return findings


@asynccontextmanager
async def _connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    async with engine.connect() as connection:  # a check that is refused must not end the others
        yield await connection.execution_options(isolation_level="AUTOCOMMIT")


async def _run_check(check: Check, context: CheckContext) -> list[Finding]:
    try:
        return [finding async for finding in check(context)]
    except (DBAPIError, MissingRightError) as error:
        subject = check.__name__.replace("_", " ")
        cause = message(error).rstrip(".")
        return [Finding(Severity.NOTE, subject, f"This could not be examined: {cause}.")]


async def _distrust(engine: AsyncEngine) -> str | None:
    async with engine.connect() as connection:
        transaction = await connection.execution_options(isolation_level="READ COMMITTED")
        try:
            await transaction.run_sync(check_owner)
        except SchemaOwnerError as error:
            return str(error)
    return None


async def _listening(engine: AsyncEngine, listen_url: str | None) -> Finding:
    """Send a notification to ourselves, the way a wait would; with NATS, hear a relay."""
    if listen_url is not None and is_nats(listen_url):
        return await _relayed(engine, listen_url)
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
        reason = message(error).rstrip(".")
        found = f"Notifications do not arrive, so every wait polls: {reason}."
        return Finding(Severity.ERROR, "listening", found, fix)
    finally:
        await side.close()
        await listening.dispose()
    return Finding(Severity.OK, "listening", "Notifications arrive.")


async def _relayed(engine: AsyncEngine, url: str) -> Finding:
    """Tell whether a relay is at work, the way a wait would learn of it."""
    side, timings = SideConnection(beside(engine)), Timings(query_timeout=ANSWER)
    try:
        unused = Listener(engine)  # one that was not started passes nothing on
        connection = await RelayOrigin(url).open(side, unused, timeout=ANSWER)
        try:
            async with aclosing(connection.states(side, timings)) as states:
                reason = await anext(states)
        finally:
            await connection.close()
    except OUTAGES as error:
        reason = message(error).rstrip(".")
    finally:
        await side.close()
    if reason is None:
        return Finding(Severity.OK, "listening", "A relay is at work: its messages arrive.")
    found = f"Hints over NATS do not arrive, so every wait polls: {reason}."
    fix = "Start `rowsignal relay`, or check the address of NATS and the name of the database."
    return Finding(Severity.ERROR, "listening", found, fix)
