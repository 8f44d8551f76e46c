"""`rowsignal doctor`: examination of a database."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli.connections import connected
from rowsignal.cli.errors import needing
from rowsignal.cli.options import Json, Models, MoreTables, Tables, Url
from rowsignal.cli.output import console, progress, write, write_json, write_table
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.doctor import Finding, Severity, diagnose, stream_findings
from rowsignal.exceptions import UnavailableError

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


WithNats = Annotated[
    str | None,
    typer.Option(
        "--nats",
        metavar="URL",
        help="Examine the relay and its stream in NATS as well.",
        show_default=False,
    ),
]


def doctor(
    tables: Tables = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    listen_url: Annotated[
        str | None,
        typer.Option(
            "--listen-url",
            metavar="URL",
            help="Address to LISTEN at, if not --url.",
            show_default=False,
        ),
    ] = None,
    role: Annotated[
        str | None,
        typer.Option(
            "--role",
            metavar="ROLE",
            help="Compare the rights of this role with what the tables need.",
            show_default=False,
        ),
    ] = None,
    nats: WithNats = None,
    json: Json = False,
) -> None:
    """Find problems that lose changes or could make writes fail, and show how to fix them.

    Exits with 1 if there is an error; warnings and notes may be acceptable.
    """
    subjects = find_subjects(models, tables, table)

    async def work() -> list[Finding]:
        async with connected(url) as engine:
            with progress("examining"):
                found = await diagnose(engine, subjects, listen_url=listen_url, role=role)
                return found + (await _of_nats(engine, nats) if nats else [])

    findings = asyncio.run(work())
    if json:
        write_json({"findings": [asdict(one) for one in findings], "ok": _is_ok(findings)})
    else:
        _show(findings)
    if not _is_ok(findings):
        raise typer.Exit(1)


async def _of_nats(engine: AsyncEngine, nats: str) -> list[Finding]:
    """Examine what a relay has put into NATS, and whether it is at work."""
    with needing("nats", "`rowsignal doctor --nats`"):
        from rowsignal.relay import (  # noqa: PLC0415 -- an optional extra
            stream_health,
            stream_name,
            unrelayed_seconds,
        )

    database = engine.url.database or ""
    try:
        health = await stream_health(nats, database)
    except UnavailableError as error:
        fix = "Check --nats, and the servers that it names."
        return [Finding(Severity.ERROR, "NATS", str(error), fix)]
    waiting = None if health is None else await unrelayed_seconds(engine, health)
    return stream_findings(health, stream_name(database), unrelayed=waiting)


def _is_ok(findings: list[Finding]) -> bool:
    return all(one.severity is not Severity.ERROR for one in findings)


def _show(findings: list[Finding]) -> None:
    rows = [
        (Text(str(one.severity), style=STYLES[one.severity]), one.subject, one.message)
        for one in findings
    ]
    write_table(("", "about", "finding"), rows)
    fixes = [one for one in findings if one.fix]
    out = console()
    if fixes:
        write("Fixes:")
    for one in fixes:
        label = Text(f"  {one.subject}: ", style="dim") if out.is_terminal else f"  {one.subject}: "
        write(Text.assemble(label, one.fix or ""))
