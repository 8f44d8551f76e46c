"""`rowsignal serve`: the service."""

import asyncio
from typing import Annotated

import typer

from rowsignal.cli.config import read_settings
from rowsignal.cli.connections import connected
from rowsignal.cli.errors import needing
from rowsignal.cli.options import Url

ListenUrl = Annotated[
    str | None,
    typer.Option(
        "--listen-url",
        metavar="URL",
        help="Where to LISTEN, if not --url; nats://... takes a relay's messages for hints.",
        show_default=False,
    ),
]
SharedLimits = Annotated[
    str | None,
    typer.Option(
        "--shared-limits",
        metavar="URL",
        help="NATS, where processes share limits, tickets and the list of streams.",
        show_default=False,
    ),
]


def serve(
    *,
    url: Url = None,
    host: Annotated[
        str | None, typer.Option(help="Address to bind; default 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to bind; default 8080.", show_default=False)
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes; default 1.", show_default=False)
    ] = None,
    listen_url: ListenUrl = None,
    shared_limits: SharedLimits = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", "-t", metavar="TABLE", help="A table to offer; default: all with triggers."
        ),
    ] = None,
) -> None:
    """Serve streams of row changes over HTTP, with a page that shows them.

    Prints the address of the page; Ctrl-C ends it. Log lines are text in a terminal, JSON
    elsewhere. All other settings are variables: see `rowsignal config`. Beyond 127.0.0.1 it
    requires tokens.
    """
    with needing("service", "`rowsignal serve`"):
        from rowsignal.service import server  # noqa: PLC0415 -- an optional extra

    offered = ",".join(table) if table else None
    settings = read_settings(
        url,
        host=host,
        port=port,
        workers=workers,
        listen_url=listen_url,
        shared_limits=shared_limits,
        tables=offered,
    )

    async def try_it() -> None:
        async with connected(settings.database_url.get_secret_value()) as engine:
            await server.check(engine, settings)

    asyncio.run(try_it())
    server.serve(settings)
