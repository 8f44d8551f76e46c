"""The relay to NATS."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli.connections import connected
from rowsignal.cli.errors import CommandError, needing
from rowsignal.cli.options import Nats, Url

Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        "-t",
        metavar="TABLE[=COLUMN,...]",
        show_default=False,
        help="A table to carry, and which of its columns; default: all that have a log.",
    ),
]


def relay(
    nats: Nats,
    *,
    table: Tables = None,
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
    url: Url = None,
) -> None:
    """Relay the change log to NATS JetStream until Ctrl-C or SIGTERM.

    Each change is published once and in order, however many relays run: one is at work, the others
    stand by.
    """
    with needing("nats", "`rowsignal relay`"):
        from rowsignal.relay import StreamSettings  # noqa: PLC0415 -- an optional extra

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
    settings = StreamSettings(replicas=replicas, max_age=max_age, max_bytes=max_bytes)
    asyncio.run(_relay(url, nats, _columns(table or ()), settings))


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


async def _relay(url: str | None, nats: str, tables: Any, settings: Any) -> None:
    async with connected(url) as engine:
        work = asyncio.ensure_future(_run(engine, nats, tables, settings))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, work.cancel)
        await asyncio.wait([work])
        if not work.cancelled():
            work.result()


async def _run(engine: AsyncEngine, nats: str, tables: Any, settings: Any) -> None:
    from rowsignal.relay import Relay  # noqa: PLC0415 -- an optional extra

    await Relay(engine, nats, tables=tables, stream=settings).run()
