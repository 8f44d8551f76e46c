"""A gateway: streams over HTTP, read from NATS."""

import asyncio
from typing import Annotated

import typer

from rowsignal.cli.config import settings_of
from rowsignal.cli.connections import parsed
from rowsignal.cli.errors import CommandError, needing
from rowsignal.cli.options import Nats, Url

Host = Annotated[
    str | None, typer.Option(help="Address to bind; default 127.0.0.1.", show_default=False)
]
Port = Annotated[int | None, typer.Option(help="Port to bind; default 8080.", show_default=False)]
Workers = Annotated[int | None, typer.Option(help="Processes; default 1.", show_default=False)]
Database = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        envvar="ROWSIGNAL_NATS_DATABASE",
        show_default=False,
        help="The database whose changes are read; default: that of the URL.",
    ),
]


def gateway(
    nats: Nats,
    *,
    database: Database = None,
    url: Url = None,
    host: Host = None,
    port: Port = None,
    workers: Workers = None,
    table: Annotated[
        list[str] | None,
        typer.Option(
            "--table", "-t", metavar="TABLE", help="A table to offer; default: all relayed ones."
        ),
    ] = None,
) -> None:
    """Serve streams of row changes over HTTP from NATS, where `rowsignal relay` puts them.

    Needs no database. With one, streams can begin with the current rows (`snapshot=true`), and a
    row be waited for: these alone connect to it.
    """
    with needing("service", "`rowsignal gateway`"):
        from pydantic import SecretStr  # noqa: PLC0415 -- an optional extra

        from rowsignal.service import server  # noqa: PLC0415 -- as above
    with needing("nats", "`rowsignal gateway`"):
        from rowsignal.relay import relayed_tables  # noqa: PLC0415 -- as above

    address = "" if url is None else parsed(url).render_as_string(hide_password=False)
    name = database or (parsed(url).database if url is not None else None)
    if not name:
        raise CommandError("Say whose changes are read: --database NAME, or --url with its name.")
    settings = settings_of(
        SecretStr(address),
        nats_url=SecretStr(nats),
        nats_database=name,
        host=host,
        port=port,
        workers=workers,
        tables=",".join(table) if table else None,
    )
    asyncio.run(relayed_tables(nats, name, settings.tables or None))
    server.serve(settings, factory=server.GATEWAY)
