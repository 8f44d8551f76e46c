"""Put recorded measurements into the documentation: python -m benchmarks.publish.

Reads docs/explanation/measurements/NAME.json, each the object that `--json` prints, and writes
the tables between the markers of docs/explanation/benchmarks.md and README.md, and the plot.
"""

import json
import re
from pathlib import Path
from typing import Any

import matplotlib as mpl

from benchmarks.report import is_met

mpl.use("svg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

DOCS = Path(__file__).parent.parent / "docs"
MEASUREMENTS = DOCS / "explanation" / "measurements"
VARIANTS = {
    "hint": "triggers, nothing waits",
    "watched": "one cold row watched",
    "naive": "NOTIFY for each row",
    "least": "one constant row inserted",
    "log": "change log, unread",
    "log_read": "change log, read",
}
COLOURS = ("#2f6f4f", "#3c8dbc", "#b8473d", "#9a9a9a", "#8a6d3b", "#c9a227")
HIGHLIGHTS = {
    "p50_over_floor": "commit to resolved wait, over a bare asyncpg listener (median)",
    "sooner_than_polling": "sooner than polling every half second, times",
    "kib_per_wait": "KiB for each of 10,000 waits",
    "resolve_rate_over_get": "rate of resolving 10,000 waits, over bare `session.get`",
    "unwatched_tps_8": "write rate of 8 clients with triggers and no waits, over none",
    "deliveries_over_bare": "deliveries to 1,000 readers, over an app that writes prepared bytes",
    "drain_over_select": "rate of reading the change log, over a bare SELECT",
    "middleware_over_bare": "time of a request with the session middleware, over hand-written",
}


def recorded() -> list[dict[str, Any]]:
    """Return what was measured, by name."""
    return [json.loads(file.read_text()) for file in sorted(MEASUREMENTS.glob("*.json"))]


def table(reports: list[dict[str, Any]]) -> str:
    """Return every ratio with its target."""
    lines = ["| benchmark | ratio | measured | target | |", "|---|---|---|---|---|"]
    for report in reports:
        for name, value in report["ratios"].items():
            target = report["targets"].get(name, "")
            verdict = "" if not target else "met" if is_met(value, target) else "**missed**"
            lines.append(f"| {report['name']} | `{name}` | {value:g} | {target} | {verdict} |")
    return "\n".join(lines)


def highlights(reports: list[dict[str, Any]]) -> str:
    """Return the ratios that a newcomer asks for."""
    ratios = {name: value for report in reports for name, value in report["ratios"].items()}
    lines = ["| | |", "|---|---|"]
    lines += [f"| {text} | {ratios[n]:g} |" for n, text in HIGHLIGHTS.items() if n in ratios]
    return "\n".join(lines)


def figures(reports: list[dict[str, Any]]) -> str:
    """Return the figures behind the ratios, as they were printed."""
    parts = [
        f"### {report['name']}\n\n```text\n{json.dumps(report['figures'], indent=1)}\n```"
        for report in reports
    ]
    return "\n\n".join(parts)


def fill(file: Path, marker: str, text: str) -> None:
    """Replace what stands between a page's markers."""
    begin, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    page = file.read_text()
    assert pattern.search(page), f"{file} has no {begin}"
    file.write_text(pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page))


def plot(report: dict[str, Any]) -> None:
    """Draw what triggers cost those who write."""
    figures = report["figures"].items()
    groups = {label: values for label, values in figures if label.endswith(("client", "clients"))}
    shown, axes = plt.subplots(figsize=(9, 3.6))
    width = 0.8 / len(VARIANTS)
    for place, (name, label) in enumerate(VARIANTS.items()):
        heights = [values.get(name, 0) for values in groups.values()]
        positions = [n + (place - len(VARIANTS) / 2 + 0.5) * width for n in range(len(groups))]
        axes.bar(positions, heights, width * 0.9, label=label, color=COLOURS[place])
    axes.axhline(1, color="#888888", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel("TPS relative to no trigger")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
    save(shown, "write_cost.svg")


def plot_growth(report: dict[str, Any]) -> None:
    """Draw what a change costs in catching up with many, and how long many waits take to begin."""
    shown, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    prefix = "us a change, "
    for name, values in report["figures"].items():
        if name.startswith(prefix):
            points = sorted((int(count), cost) for count, cost in values.items())
            left.plot(*zip(*points, strict=True), marker="o", label=name.removeprefix(prefix))
    left.set_xlabel("changes caught up with")
    left.set_ylabel("microseconds a change")
    left.legend(frameon=False, fontsize=8)
    armed = report["figures"]["waits, seconds until armed"]
    points = sorted((int(count), seconds) for count, seconds in armed.items())
    right.plot(*zip(*points, strict=True), marker="o", color=COLOURS[0])
    right.set_xlabel("waits for rows of one table")
    right.set_ylabel("seconds until all are armed")
    for axes in (left, right):
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    save(shown, "growth.svg")


def save(shown: Figure, name: str) -> None:
    """Store a drawing: the same measurements give the same file."""
    shown.tight_layout()
    mpl.rcParams["svg.hashsalt"] = "rowsignal"
    shown.savefig(DOCS / "images" / name, metadata={"Date": None})


def main() -> None:
    """Fill the pages and draw the plot."""
    reports = recorded()
    page = DOCS / "explanation" / "benchmarks.md"
    fill(page, "ratios", table(reports))
    fill(page, "figures", figures(reports))
    fill(DOCS.parent / "README.md", "measurements", highlights(reports))
    by_name = {report["name"]: report for report in reports}
    plot(by_name["write_cost"])
    plot_growth(by_name["growth"])


if __name__ == "__main__":
    main()
