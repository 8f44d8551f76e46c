"""`rowsignal bench`: the latency of waits on the user's database."""

import asyncio
from typing import Annotated

import typer

from rowsignal.cli.connections import connected
from rowsignal.cli.errors import FAILED, CommandError, reason_of
from rowsignal.cli.latency import Latency, LatencyReport, measure_latency
from rowsignal.cli.options import Json, Url
from rowsignal.cli.output import errors, write, write_json, write_table
from rowsignal.listener import OUTAGES


def bench(
    *,
    url: Url = None,
    interval: Annotated[
        float, typer.Option(min=0.05, max=60, help="Polling interval to compare with, in seconds.")
    ] = 0.5,
    rounds: Annotated[int, typer.Option(min=10, max=100_000, help="Waits by notification.")] = 200,
    polled_rounds: Annotated[int, typer.Option(min=1, max=1000, help="Waits by polling.")] = 10,
    json: Json = False,
) -> None:
    """Measure how soon waits end after a commit, by notification and by polling.

    Uses a new schema, which is dropped at the end. Run it while the database has its usual load,
    since the latency depends on it.
    """
    report = asyncio.run(_measure(url, interval, rounds, min(polled_rounds, rounds)))
    if json:
        write_json(report.to_dict())
        return
    rows = [
        _row(f"notified ({report.rounds} waits)", report.notified),
        _row(f"polled each {interval:g} s ({report.polled_rounds} waits)", report.polled),
    ]
    write_table(("waits", "median", "99 of 100", "slowest"), rows)
    write(f"{report.polled.p50 / report.notified.p50:.0f} times sooner than polling (medians).")


async def _measure(
    url: str | None, interval: float, rounds: int, polled_rounds: int
) -> LatencyReport:
    out = errors()
    async with connected(url) as engine:
        try:
            with out.status("measuring ...") as status:

                def note(done: int) -> None:
                    status.update(f"measuring ... {done} of {rounds} waits")

                return await measure_latency(
                    engine,
                    interval=interval,
                    rounds=rounds,
                    polled_rounds=polled_rounds,
                    note=note,
                )
        except OUTAGES as error:
            raise CommandError(
                f"Could not measure: {reason_of(error)}. `rowsignal doctor` shows what is wrong.",
                FAILED,
            ) from error


def _row(label: str, latency: Latency) -> tuple[str, ...]:
    return label, _ms(latency.p50), _ms(latency.p99), _ms(latency.slowest)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
