"""`rowsignal work`: a worker that runs the handlers of a program."""

import asyncio
import logging
import signal
import sys
from contextlib import AsyncExitStack
from typing import Annotated

import typer

from rowsignal.cli.errors import CommandError
from rowsignal.cli.output import errors
from rowsignal.cli.table_arguments import load
from rowsignal.handlers import ChangeHandlers

Places = Annotated[
    list[str],
    typer.Argument(
        metavar="MODULE:NAME",
        show_default=False,
        help="A ChangeHandlers object: shop.handlers:changes; may be repeated.",
    ),
]
LogLevel = Annotated[
    str, typer.Option("--log-level", metavar="LEVEL", help="Level of log lines on standard error.")
]


def work(places: Places, *, log_level: LogLevel = "info") -> None:
    """Run handlers of changes until Ctrl-C or SIGTERM; workers share the partitions.

    At the end the worker finishes the present change first.
    """
    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise CommandError(f"--log-level {log_level!r}: write debug, info, warning or error.")
    found = [_handlers(place) for place in places]
    logging.basicConfig(level=level, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    asyncio.run(_work(found))


def _handlers(place: str) -> ChangeHandlers:
    found = load(place, "MODULE:NAME")
    if not isinstance(found, ChangeHandlers):
        raise CommandError(
            f"{place} is a {type(found).__name__}: name a ChangeHandlers object, as in"
            " `changes = ChangeHandlers(engine)`."
        )
    return found


async def _work(found: list[ChangeHandlers]) -> None:
    ending = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ending.set)
    async with AsyncExitStack() as stack:
        for handlers in found:
            await stack.enter_async_context(handlers)
        names = [consumer.name for handlers in found for consumer in handlers.consumers]
        errors().print(f"At work as {', '.join(names)}.", soft_wrap=True)
        await ending.wait()
