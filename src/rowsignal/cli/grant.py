"""`rowsignal grant` and `rowsignal revoke`: the rights of roles."""

import asyncio
from typing import Annotated, Any

import typer

from rowsignal.cli.connections import connected
from rowsignal.cli.options import Json, Models, MoreTables, Url
from rowsignal.cli.output import write, write_json
from rowsignal.cli.table_arguments import find_subjects
from rowsignal.triggers.access import grant as grant_rights
from rowsignal.triggers.access import revoke as revoke_rights

Role = Annotated[str, typer.Argument(metavar="ROLE", help="The role, as PostgreSQL names it.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for rows of the tables.")]
Watch = Annotated[bool, typer.Option("--watch", help="Read the change log as well.")]
Serve = Annotated[bool, typer.Option("--serve", help="Prune the log as well, as the service does.")]
Work = Annotated[bool, typer.Option("--work", help="Keep the positions of handlers as well.")]


def grant(
    role: Role,
    *,
    wait: Wait = False,
    watch: Watch = False,
    serve: Serve = False,
    work: Work = False,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Grant a role exactly the rights to wait, to watch, to serve or to handle changes.

    With --table or --models also SELECT on these tables. Writers need no grant.
    """
    subjects = find_subjects(models, table) or ()
    needs = {"wait": wait, "watch": watch, "serve": serve, "work": work}

    async def give() -> None:
        async with connected(url) as engine:
            await grant_rights(engine, role, **needs, tables=subjects)

    asyncio.run(give())
    _report(role, "granted", json=json, given=[name for name, wanted in needs.items() if wanted])


def revoke(
    role: Role,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Revoke the rights that `grant` gave to a role; with --table also SELECT on these tables."""
    subjects = find_subjects(models, table) or ()

    async def work() -> None:
        async with connected(url) as engine:
            await revoke_rights(engine, role, tables=subjects)

    asyncio.run(work())
    _report(role, "revoked", json=json)


def _report(role: str, action: str, *, json: bool, **more: Any) -> None:
    if json:
        write_json({"role": role, "action": action, **more})
    else:
        write(f"{role}: {action}")
