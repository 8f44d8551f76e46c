"""Screens of the demonstration: a live table in a terminal, else plain lines."""

import time
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rowsignal.demo.drawing import Lines, Picture
from rowsignal.demo.report import DemoReport, Tally
from rowsignal.demo.story import View
from rowsignal.demo.waits import INTERVAL, Outcome

BARS = "▁▂▃▄▅▆▇█"
SHOWN = 12
MODE_STYLES = {"armed": "green", "settling": "cyan", "busy": "yellow", "polling": "red"}


class PlainScreen(Lines):
    """Prints one line for each event."""

    def resolved(self, outcome: Outcome) -> None:
        """Print a wait that has ended."""
        self.tell(
            f"order {outcome.order}: {outcome.before} -> {outcome.after},"
            f" seen {_ms(outcome.seconds)} after the commit ({outcome.mode})"
        )

    def refresh(self, view: View) -> None:
        """Do nothing: the lines are printed already."""


class LiveScreen(Picture):
    """Draws a table of the last waits that ended, with the figures of all waits."""

    def resolved(self, outcome: Outcome) -> None:
        """Do nothing until the next refresh."""

    def refresh(self, view: View) -> None:
        """Draw the table."""
        rows = max(min(SHOWN, self._console.height - 12), 3)
        self.draw(_picture(view, rows))


def summary(report: DemoReport, *, is_ascii: bool = False) -> Text:
    """Return the report in a few lines."""
    arrow = "->" if is_ascii else "→"
    verdict = ("every wait ended by notification", "bold green")
    if not report.is_good:
        verdict = ("not every wait ended by notification", "bold red")
    missed = f", {report.missed} changes not seen" if report.missed else ""
    figures = f"{report.waits} waits ended by {report.commits} commits of orders{missed}\n"
    latencies = (
        f"commit {arrow} wait over: median {_ms(report.p50)}, 99 of 100 within"
        f" {_ms(report.p99)}, slowest {_ms(report.slowest)}\n"
    )
    polling = f"polling each {INTERVAL:g} s would have taken {_ms(INTERVAL / 2)} on average"
    how = f"{report.notified} of {report.waits} by notification: "
    return Text.assemble(figures, latencies, polling, "\n", how, verdict)


def _picture(view: View, rows: int) -> RenderableType:
    return Group(Text(), _recent(list(view.tally.outcomes)[-rows:], rows), _figures(view))


def _recent(outcomes: Sequence[Outcome], rows: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, min_width=64)
    table.add_column("order", justify="right", style="dim", width=6)
    table.add_column("was", width=9)
    table.add_column("became", width=9, style="bold")
    table.add_column("commit → wait over", justify="right", width=18)
    table.add_column("", width=8)
    for outcome in reversed(outcomes):
        style = MODE_STYLES.get(outcome.mode, "")
        latency = Text(_ms(outcome.seconds), style="green" if outcome.is_notified else "red")
        mode = Text(outcome.mode, style=style)
        table.add_row(str(outcome.order), outcome.before, outcome.after, latency, mode)
    for _ in range(rows - len(outcomes)):
        table.add_row()
    return table


def _figures(view: View) -> Table:
    tally, mode = view.tally, Text(view.mode, style=MODE_STYLES.get(view.mode, ""))
    grid = Table.grid(padding=(0, 3))
    polled = f"median; polling each {INTERVAL:g} s takes {_ms(INTERVAL / 2)}"
    grid.add_row(f"{view.waiting} waiting", f"{tally.count} resolved", mode, _bars(tally))
    grid.add_row(
        f"{view.commits} commits",
        f"{view.notifications} notifications",
        Text(_ms(tally.percentile(0.5)), style="bold"),
        polled,
    )
    grid.add_row(Text(time.strftime("%H:%M:%S"), style="dim"), Text("Ctrl-C ends", style="dim"))
    return grid


def _bars(tally: Tally) -> str:
    recent = [outcome.seconds for outcome in tally.outcomes][-32:]
    top = max([*recent, 0.001])
    return "".join(BARS[min(int(seconds / top * len(BARS)), len(BARS) - 1)] for seconds in recent)


def _ms(seconds: float) -> str:
    milliseconds = seconds * 1000
    return f"{milliseconds:.0f} ms" if milliseconds >= 10 else f"{milliseconds:.1f} ms"
