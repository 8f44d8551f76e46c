import asyncio
import io
import json
import subprocess
import sys

import httpx
import pytest
from rich.console import Console
from sqlalchemy.ext.asyncio import AsyncEngine

from rowsignal.cli import main
from rowsignal.demo.page import serve_page
from rowsignal.demo.report import DemoReport, Tally
from rowsignal.demo.screens import LiveScreen, summary
from rowsignal.demo.shop import create_shop
from rowsignal.demo.shop_tables import Base
from rowsignal.demo.story import View, tell_story
from rowsignal.demo.waits import INTERVAL, Outcome
from rowsignal.triggers import install_triggers

NOTIFIED = Outcome(7, "new", "paid", 0.002, "armed")
POLLED = Outcome(8, "paid", "packed", INTERVAL / 2, "polling")
REPORT = {
    "server_version": "18.6",
    "commits": 2,
    "notifications": 2,
    "p50": 0.002,
    "p99": 0.002,
    "slowest": 0.002,
}


class SilentStage:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.sentences: list[str] = []
        self.outcomes: list[Outcome] = []

    def tell(self, sentence: str) -> None:
        self.sentences.append(sentence)

    def resolved(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def refresh(self, view: View) -> None:
        assert view.waiting >= 0


def test_the_demonstration_ends_well_in_a_process_of_its_own() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "rowsignal", "demo", "--once", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["is_good"] is True
    assert report["waits"] == report["notified"] >= 40
    assert report["missed"] == 0
    assert report["notifications"] > 0
    assert "Traceback" not in ended.stderr


async def test_every_wait_of_the_story_is_told_and_none_is_left_behind() -> None:
    stage, before = SilentStage(), asyncio.all_tasks()

    report = await tell_story(stage, goal=5, rate=20)

    assert report.is_good
    assert len(stage.outcomes) == report.waits >= 5
    assert any("PostgreSQL" in sentence for sentence in stage.sentences)
    assert asyncio.all_tasks() == before


async def test_the_page_is_served_beside_the_story_and_ends_with_it(
    engine: AsyncEngine, database_url: str
) -> None:
    await create_shop(engine)
    await install_triggers(engine, Base, log=True)

    async with serve_page(database_url, port=0) as address, httpx.AsyncClient() as client:
        page = await client.get(address)
        ready = await client.get(f"{address}health/ready")
        stream = client.stream("GET", f"{address}v1/changes/shop.orders")
        async with stream as answer:
            first = await anext(answer.aiter_lines())

    assert (page.status_code, ready.status_code, answer.status_code) == (200, 200, 200)
    assert first.startswith("retry:")


async def test_a_port_that_was_asked_for_is_not_replaced_by_another(
    engine: AsyncEngine, database_url: str
) -> None:
    await create_shop(engine)
    async with serve_page(database_url, port=0) as address:
        port = int(address.rsplit(":", 1)[1].strip("/"))
        with pytest.raises(OSError, match="in use"):
            async with serve_page(database_url, port=port):
                pass


@pytest.mark.parametrize(
    ("waits", "notified", "missed", "is_good"),
    [(2, 2, 0, True), (2, 1, 0, False), (2, 2, 1, False), (0, 0, 0, False)],
)
def test_only_notified_waits_make_a_good_report(
    waits: int, notified: int, missed: int, *, is_good: bool
) -> None:
    report = DemoReport(**REPORT, waits=waits, notified=notified, missed=missed)

    assert report.is_good is is_good
    assert ("not every" in summary(report).plain) is not is_good


def test_a_polled_wait_does_not_count_as_notified() -> None:
    tally = Tally()
    for outcome in (NOTIFIED, POLLED):
        tally.add(outcome)

    assert (tally.count, tally.notified) == (2, 1)
    assert tally.percentile(0.99) == tally.slowest == POLLED.seconds


def test_the_live_table_shows_the_last_waits_and_their_mode() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    tally = Tally()
    for outcome in (NOTIFIED, POLLED):
        tally.add(outcome)

    with LiveScreen(console) as screen:
        screen.tell("started PostgreSQL")
        screen.refresh(View(tally, "armed", 3, 4, 5))

    assert isinstance(console.file, io.StringIO)
    written = console.file.getvalue()
    for expected in ("started PostgreSQL", "packed", "2.0 ms", "polling", "3 waiting", "4 commits"):
        assert expected in written


def test_a_rate_beyond_what_notifications_are_used_for_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["demo", "--once", "--rate", "1000"]) == 2
    assert "--rate" in capsys.readouterr().err
