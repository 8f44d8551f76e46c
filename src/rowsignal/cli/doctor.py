"""`rowsignal doctor`: examination of a database."""

import asyncio
from dataclasses import asdict
from typing import Annotated

import typer
from rich.text import Text

from rowsignal.cli.connections import connected
from rowsignal.cli.options import Json, Models, MoreTables, Tables, Url
from rowsignal.cli.output import console, progress, write, write_json, write_table
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.doctor import Finding, Severity, diagnose

STYLES = {"ok": "green", "note": "cyan", "warning": "yellow", "error": "bold red"}


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
    json: Json = False,
) -> None:
    """Find problems that lose changes or could make writes fail, and show how to fix them.

    Exits with 1 if there is an error; warnings and notes may be acceptable.
    """
    subjects = find_subjects(models, tables, table)

    async def work() -> list[Finding]:
        async with connected(url) as engine:
            with progress("examining"):
                return await diagnose(engine, subjects, listen_url=listen_url, role=role)

    findings = asyncio.run(work())
    if json:
        write_json({"findings": [asdict(one) for one in findings], "ok": _is_ok(findings)})
    else:
        _show(findings)
    if not _is_ok(findings):
        raise typer.Exit(1)


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
