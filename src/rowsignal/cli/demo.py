"""`rowsignal demo`: the demonstration."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

import typer
from rich.console import Console

from rowsignal.cli.demo_scale import demo_scale
from rowsignal.cli.options import Json
from rowsignal.cli.output import console, errors, write_json
from rowsignal.demo.report import DemoReport
from rowsignal.demo.screens import LiveScreen, PlainScreen, summary
from rowsignal.demo.story import tell_story

GOAL, QUICK = 40, 15.0


def demo(
    *,
    once: Annotated[
        bool, typer.Option("--once", help=f"End after {GOAL} waits, without the page.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.1, max=40, metavar="RATE", help="Transactions a second.", show_default=False
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port of the page; default 8080, or a free one.")
    ] = None,
    is_opened: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    scale: Annotated[
        bool,
        typer.Option("--scale", help="Show NATS, two relays and two gateways, and kill them."),
    ] = False,
    json: Json = False,
) -> None:
    """Show waits on a real PostgreSQL, started for the demonstration and removed afterwards.

    A shop changes its orders, with one wait for each open order. Runs until Ctrl-C. Exits with 0
    only if every change ended its wait, and each by notification.

    With --scale readers hop between gateways while keys kill one part after another; with --once a
    fixed script does. Exits with 0 only if no change was lost, doubled or out of order.
    """
    if scale:
        demo_scale(once=once, rate=rate, port=port, is_opened=is_opened, json=json)
        return
    report = asyncio.run(_demo(once=once, rate=rate, port=port, is_opened=is_opened, json=json))
    if json:
        write_json(report.to_dict())
    else:
        console().print(summary(report))
    if not report.is_good:
        raise typer.Exit(1)


async def _demo(
    *, once: bool, rate: float | None, port: int | None, is_opened: bool, json: bool
) -> DemoReport:
    out: Console = errors() if json else console()

    @contextlib.asynccontextmanager
    async def page(database_url: str) -> AsyncIterator[str]:
        from rowsignal.demo.page import serve_page  # noqa: PLC0415 -- an optional extra

        async with serve_page(database_url, port=port, is_opened=is_opened) as address:
            yield address

    screen = LiveScreen(out) if out.is_terminal else PlainScreen(out)
    with screen as stage:
        return await tell_story(
            stage,
            goal=GOAL if once else None,
            rate=rate or (QUICK if once else 6.0),
            page=None if once and not is_opened else page,
        )
