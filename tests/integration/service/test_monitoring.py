"""The dashboard and the alert rules ask for metrics that the service has."""

import json
import re
import shutil
import subprocess

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rowsignal.service.app import create_app
from rowsignal.service.settings import Settings
from support.doc_pages import ROOT
from support.event_streams import execute, make_tables, reading
from support.web_server import serving

PLACE = ROOT / "docs" / "monitoring"
NAME = re.compile(r"\b(?:rowsignal|process)_[a-z_]+")
PROMETHEUS_OWN = {"up"}


def expressions():
    dashboard = json.loads((PLACE / "grafana-dashboard.json").read_text())
    asked = [it["expr"] for panel in dashboard["panels"] for it in panel["targets"]]
    rules = (PLACE / "alerts.yml").read_text()
    return asked + re.findall(r"^ +expr: (.+)$", rules, re.MULTILINE)


@pytest.fixture
async def families(engine, database_url, tmp_path):
    await make_tables(engine)
    app = create_app(Settings(database_url=database_url, ticket_dir=tmp_path / "tickets"))
    async with serving(app) as site:
        async with reading(site.port, "/v1/changes/orders") as stream:
            await stream.until(lambda event: event.id != "")
            await execute(engine, "insert into orders values (1, 'open', 1, 7, '')")
            await stream.until("insert")
        await app.state.service.probe.refreshed()
        app.state.service.hooks.task_restarted(task="reads of public.hidden", reason="x")
        text = (await site.client.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


async def test_every_metric_that_is_asked_for_is_there(families):
    there = {sample.name for family in families.values() for sample in family.samples}
    asked = {name for text in expressions() for name in NAME.findall(text)}
    assert len(asked) > 15
    assert asked - there == set()


async def test_what_an_alert_needs_is_told(families):
    def value(name, **labels):
        samples = [it for family in families.values() for it in family.samples]
        (found,) = [it.value for it in samples if it.name == name and it.labels == labels]
        return found

    assert value("rowsignal_ready") == 1
    assert value("rowsignal_listener_up") == 1
    assert value("rowsignal_log_bytes") > 0
    assert value("rowsignal_log_lag_seconds") < 60
    assert value("rowsignal_delivery_seconds_count") == 1
    assert value("rowsignal_overflows_total") == 0
    assert value("rowsignal_task_restarts_total", task="reads") == 1
    assert value("process_resident_memory_bytes") > 0
    (build,) = families["rowsignal_build_info"].samples
    assert re.fullmatch(r"\d+\.\d+.*", build.labels["version"])


def test_every_name_of_ours_has_one_meaning(families):
    for name, family in families.items():
        assert family.documentation, name
        if name.startswith("rowsignal_"):
            assert family.type in {"counter", "gauge", "histogram"}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_the_rules():
    command = ["promtool", "check", "rules", str(PLACE / "alerts.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr
