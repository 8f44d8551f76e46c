"""The relay to NATS, and what its capture from the WAL needs."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli.connections import connected
from rowsignal.cli.errors import CommandError, needing
from rowsignal.cli.options import NATS, Json, Models, MoreTables, Url
from rowsignal.cli.options import Tables as TableNames
from rowsignal.cli.output import write, write_json, write_table
from rowsignal.cli.table_arguments import find_subjects

Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        "-t",
        metavar="TABLE[=COLUMN,...]",
        show_default=False,
        help="A table to carry, and which of its columns; default: all that are captured.",
    ),
]
Capture = Annotated[
    Literal["log", "wal"],
    typer.Option(help="Where changes come from: the change log, or the WAL without triggers."),
]
ReplicationUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        show_default=False,
        help="PostgreSQL itself, for --capture wal, where --url leads to a pooler.",
    ),
]
EXTRA = "`rowsignal relay`"

app = typer.Typer(
    help="Relay changes to NATS JetStream; install, uninstall and show capture from the WAL.",
    invoke_without_command=True,
    rich_markup_mode=None,
)


@app.callback()
def relay(
    context: typer.Context,
    nats: Annotated[str | None, NATS] = None,
    *,
    table: Tables = None,
    capture: Capture = "log",
    replicas: Annotated[
        int, typer.Option(min=1, max=5, help="Copies of the stream, where it is made here.")
    ] = 1,
    max_age: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, help="How long it keeps messages, as above."),
    ] = 3 * 24 * 3600.0,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="How large it may be, as above.", show_default=False),
    ] = None,
    replication_url: ReplicationUrl = None,
    url: Url = None,
) -> None:
    """Relay changes to NATS JetStream until Ctrl-C or SIGTERM.

    Each change is published once and in order, however many relays run: one is at work, the others
    stand by.
    """
    if context.invoked_subcommand is not None:
        return
    if nats is None:
        raise CommandError(
            "No NATS was named: pass --nats nats://host:4222, or set ROWSIGNAL_NATS_URL."
        )
    with needing("nats", EXTRA):
        from rowsignal.relay import StreamSettings  # noqa: PLC0415 -- an optional extra

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    options = {
        "tables": _columns(table or ()),
        "stream": StreamSettings(replicas=replicas, max_age=max_age, max_bytes=max_bytes),
        "capture": capture,
        "replication_url": replication_url,
    }
    asyncio.run(_relay(url, nats, options))


def _columns(tables: Sequence[str]) -> dict[str, list[str] | None] | None:
    """Return the columns by table; None where no table was named."""
    found: dict[str, list[str] | None] = {}
    for text in tables:
        name, equals, columns = text.partition("=")
        names = [column.strip() for column in columns.split(",") if column.strip()]
        if equals and not names:
            raise CommandError(f"--table {text!r} names no column: write {name}=id,status.")
        found[name] = names if equals else None
    return found or None


async def _relay(url: str | None, nats: str, options: dict[str, Any]) -> None:
    async with connected(url) as engine:
        work = asyncio.ensure_future(_run(engine, nats, options))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()


async def _run(engine: AsyncEngine, nats: str, options: dict[str, Any]) -> None:
    from rowsignal.relay import Relay  # noqa: PLC0415 -- an optional extra

    await Relay(engine, nats, **options).run()


@app.command()
def install(
    tables: TableNames = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
    json: Json = False,
) -> None:
    """Publish the changes of tables, and make the slot that `relay --capture wal` reads.

    The server needs wal_level=logical, the role the right to replicate. A slot that is not read
    keeps WAL: start a relay soon, or set max_slot_wal_keep_size.
    """
    with needing("nats", EXTRA):
        from rowsignal.relay import install_wal_capture  # noqa: PLC0415 -- an optional extra

    subjects = find_subjects(models, tables, table, is_needed=True)

    async def work() -> Any:
        async with connected(url) as engine:
            return await install_wal_capture(engine, subjects)

    _show(asyncio.run(work()), is_json=json)


@app.command()
def uninstall(
    tables: TableNames = None,
    *,
    table: MoreTables = None,
    models: Models = None,
    url: Url = None,
) -> None:
    """Publish changes of tables no longer; without tables, drop the publication and the slot."""
    with needing("nats", EXTRA):
        from rowsignal.relay import uninstall_wal_capture  # noqa: PLC0415 -- an optional extra

    subjects = find_subjects(models, tables, table, is_needed=False)

    async def work() -> None:
        async with connected(url) as engine:
            await uninstall_wal_capture(engine, subjects)

    asyncio.run(work())
    write(
        "Changes of these tables are published no longer."
        if subjects
        else "Publication and slot are gone."
    )


@app.command()
def status(*, url: Url = None, json: Json = False) -> None:
    """Show the slot and the published tables; exit with 1 where changes are lost."""
    with needing("nats", EXTRA):
        from rowsignal.relay import wal_capture_status  # noqa: PLC0415 -- an optional extra

    async def work() -> Any:
        async with connected(url) as engine:
            return await wal_capture_status(engine)

    found = asyncio.run(work())
    _show(found, is_json=json)
    if found.wal_status in (None, "lost") or any(it.problem for it in found.tables):
        raise typer.Exit(1)


def _show(found: Any, *, is_json: bool) -> None:
    if is_json:
        write_json(asdict(found))
        return
    state = "is not there" if found.wal_status is None else f"keeps {found.lag_bytes} bytes of WAL"
    reader = "read by a relay" if found.is_active else "read by none just now"
    write(f"The slot {found.slot} {state} ({found.wal_status}), {reader}.")
    rows = [
        (f"{it.schema}.{it.table}", "full" if it.has_old_values else "keys", it.problem or "")
        for it in found.tables
    ]
    write_table(("table", "old values", ""), rows)
