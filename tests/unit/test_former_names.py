"""Names of an earlier release that are still accepted."""

import pytest
from prometheus_client import CollectorRegistry

from rowsignal.hooks import HookGroup, Hooks
from rowsignal.listener import Timings
from rowsignal.metrics import PrometheusHooks


class OldHooks(Hooks):
    """Hooks as an application of 0.1 wrote them."""

    def __init__(self) -> None:
        self.reads: list[tuple[str, int]] = []

    def looked(self, *, table: str, rows: int, seconds: float) -> None:
        self.reads.append((table, rows))


def test_hooks_that_override_looked_receive_reads() -> None:
    old = OldHooks()
    HookGroup(old, Hooks()).rows_read(table="public.orders", rows=3, seconds=0.1)
    assert old.reads == [("public.orders", 3)]


def test_prometheus_hooks_call_an_override_of_looked() -> None:

    class OldCounters(PrometheusHooks):
        seen = 0

        def looked(self, *, table: str, rows: int, seconds: float) -> None:
            self.seen += rows

    counters = OldCounters(CollectorRegistry())
    counters.rows_read(table="public.orders", rows=3, seconds=0.1)
    assert counters.seen == 3


def test_timings_accept_their_former_keywords() -> None:
    timings = Timings(answer=1.5, linger=0.5)
    assert timings == Timings(query_timeout=1.5, idle_timeout=0.5)
    assert (timings.answer, timings.linger) == (1.5, 0.5)


def test_timings_refuse_an_unknown_keyword() -> None:
    with pytest.raises(TypeError, match="no timing 'lingre'; there are canary, query_timeout"):
        Timings(lingre=1.0)
