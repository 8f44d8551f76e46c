"""`rowsignal consumers`: positions, failures and dead letters of consumers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import typer
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli.connections import connected
from rowsignal.cli.options import Json, Url
from rowsignal.cli.output import write, write_json, write_table
from rowsignal.handlers import (
    ConsumerLag,
    consumer_lag,
    dead_letters,
    drop_consumer,
    drop_dead_letters,
    reset_consumer,
    retry_dead_letters,
    skip_failing,
)

Result = TypeVar("Result")

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The consumer.")]
Ids = Annotated[
    list[int] | None,
    typer.Argument(metavar="ID", show_default=False, help="Dead letters; default: all."),
]

consumers = typer.Typer(
    help="Consumers of the change log: list, reset, skip, and their dead letters.",
    invoke_without_command=True,
)


@consumers.callback()
def _default(context: typer.Context, url: Url = None, *, json: Json = False) -> None:
    if context.invoked_subcommand is None:
        list_consumers(url=url, json=json)


@consumers.command("list")
def list_consumers(*, url: Url = None, json: Json = False) -> None:
    """List the partitions of all consumers: worker, changes behind, failures, dead letters."""
    found = _run(url, consumer_lag)
    if json:
        write_json([_document(lag) for lag in found])
        return
    headings = ("consumer", "worker", "behind", "seconds", "retention", "failing", "letters", "")
    write_table(headings, [_row(lag) for lag in found])


def _document(lag: ConsumerLag) -> dict[str, Any]:
    document = asdict(lag)
    document["reset_at"] = lag.reset_at and lag.reset_at.isoformat()
    return document


def _row(lag: ConsumerLag) -> tuple[str, ...]:
    name = lag.consumer if lag.partitions == 1 else f"{lag.consumer}[{lag.partition}]"
    failing = f"{lag.attempts}x {lag.error}" if lag.attempts else "-"
    used = "-" if lag.retention_used is None else f"{lag.retention_used:.0%}"
    return (
        name,
        lag.holder or "-",
        str(lag.lag_changes),
        f"{lag.lag_seconds:.1f}",
        used,
        failing,
        str(lag.dead_letters),
        lag.problem or "",
    )


@consumers.command("reset")
def reset(
    name: Name,
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="now|start|POSITION", help="The position to continue from."),
    ] = "now",
    url: Url = None,
) -> None:
    """Put a consumer at now, at the start of the log, or at a position.

    Changes in between are skipped, or handled again.
    """
    _run(url, lambda engine: reset_consumer(engine, name, to))
    write(f"{name} goes on from {to}.")


@consumers.command("skip")
def skip(
    name: Name,
    *,
    partition: Annotated[
        int | None,
        typer.Option("--partition", min=0, help="Only this partition.", show_default=False),
    ] = None,
    url: Url = None,
) -> None:
    """Turn the changes at which a consumer fails into dead letters, and go on after them."""
    count = _run(url, lambda engine: skip_failing(engine, name, partition))
    write(f"{count} changes skipped; they are dead letters.")


@consumers.command("drop")
def drop(name: Name, *, url: Url = None) -> None:
    """Delete a consumer with its position and its dead letters."""
    _run(url, lambda engine: drop_consumer(engine, name))
    write(f"{name} is forgotten.")


@consumers.command("letters")
def letters(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", show_default=False, help="The consumer; default: all."),
    ] = None,
    *,
    url: Url = None,
    json: Json = False,
) -> None:
    """List dead letters: changes whose handler has failed in every attempt."""
    found = _run(url, lambda engine: dead_letters(engine, name))
    documents = [
        {
            **asdict(letter),
            "change": letter.change.to_dict(),
            "failed_at": letter.failed_at.isoformat(),
        }
        for letter in found
    ]
    if json:
        write_json(documents)
        return
    rows = [
        (
            str(letter.id),
            letter.consumer,
            f"{letter.change.operation} {letter.change.schema}.{letter.change.table}",
            str(letter.change.key),
            str(letter.attempts),
            letter.error.partition("\n")[0],
        )
        for letter in found
    ]
    write_table(("id", "consumer", "change", "key", "attempts", "error"), rows)


@consumers.command("retry-letters")
def retry(name: Name, ids: Ids = None, *, url: Url = None) -> None:
    """Mark dead letters to be handled once more by a worker."""
    count = _run(url, lambda engine: retry_dead_letters(engine, name, ids or None))
    write(f"{count} dead letters will be handled once more.")


@consumers.command("drop-letters")
def drop_letters(name: Name, ids: Ids = None, *, url: Url = None) -> None:
    """Delete dead letters."""
    count = _run(url, lambda engine: drop_dead_letters(engine, name, ids or None))
    write(f"{count} dead letters deleted.")


def _run(url: str | None, work: Callable[[AsyncEngine], Awaitable[Result]]) -> Result:
    async def run() -> Result:
        async with connected(url) as engine:
            return await work(engine)

    return asyncio.run(run())
