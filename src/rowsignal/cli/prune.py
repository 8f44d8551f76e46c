"""`rowsignal prune`: pruning of the change log."""

import asyncio
import re
from dataclasses import asdict, replace
from typing import Annotated, Any

import typer

from rowsignal.change_log.retention import PruneReport, get_retention, set_retention
from rowsignal.cli.connections import connected
from rowsignal.cli.errors import CommandError
from rowsignal.cli.options import Json, Url
from rowsignal.cli.output import progress, write, write_json

UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "k": 2**10, "M": 2**20, "G": 2**30}
AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([smhdkMG]?)")

MaxAge = Annotated[
    str | None,
    typer.Option("--max-age", metavar="AGE", help="Greatest age of changes: 3d, 12h, 90m."),
]
MaxSize = Annotated[
    str | None,
    typer.Option("--max-size", metavar="SIZE", help="Greatest size of the log: 1G, 500M."),
]
Save = Annotated[
    bool,
    typer.Option(
        "--save", help="Store these limits in the database, for every process that prunes."
    ),
]


def prune(
    *,
    max_age: MaxAge = None,
    max_size: MaxSize = None,
    save: Save = False,
    url: Url = None,
    json: Json = False,
) -> None:
    """Delete changes beyond the retention. Run it once a minute if no other process prunes.

    Limits that are not given are read from the database, where they are 3d and 1G at first. It
    blocks no writer, and does nothing while another process prunes. Age and size are known from
    earlier runs, so the first runs delete nothing.
    """
    from rowsignal.change_log.retention import prune as prune_log  # noqa: PLC0415 -- the command's own name

    given: dict[str, Any] = {}
    if max_age is not None:
        given["max_age"] = _amount(max_age)
    if max_size is not None:
        given["max_bytes"] = round(_amount(max_size))

    async def work() -> PruneReport:
        async with connected(url) as engine:
            retention = replace(await get_retention(engine), **given)
            if save:
                await set_retention(engine, retention)
            with progress("pruning"):
                return await prune_log(engine, retention)

    report = asyncio.run(work())
    if json:
        write_json(asdict(report))
    elif report.is_skipped:
        write("Another process prunes just now; nothing was done here.")
    else:
        write(f"{report.deleted} changes deleted, about {report.bytes_left} bytes are kept.")


def _amount(text: str) -> float:
    parts = AMOUNT.fullmatch(text.strip())
    if parts is None:
        raise CommandError(f"{text!r} is no amount: write 3d, 12h, 90m, 30s, or 1G, 500M, 64k.")
    return float(parts[1]) * UNITS[parts[2]]
